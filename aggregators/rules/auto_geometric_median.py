"""AutoGM: a geometric median that learns which updates to leave out."""

import math

import numpy as np
from numpy.typing import NDArray

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.rows.dense_rows import RowsLike
from aggregators.rows.gram import Gram
from aggregators.rows.rows import Rows
from aggregators.rule import Combination, Context, RuleResult, combine_by_gram, equal_votes
from aggregators.rules.center_distances import distances_to_center
from aggregators.rules.geometric_median import Steps, central_start, require_settings, weiszfeld
from aggregators.rules.water_filling import water_filling

Floats = NDArray[np.float64]


def auto_geometric_median(
    rows: RowsLike,
    *,
    regularization: float = 1.0,
    max_turns: int = 500,
    tolerance: float = 1e-9,
    smoothing: float = 1e-6,
) -> RuleResult:
    """Minimise sum_i alpha_i |x_i - z| + lambda / 2 |alpha|^2 over z and weights alpha in turns.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        regularization: lambda / (n m), where m is the median distance to the geometric median;
            above 0. The larger, the more rows stay in, and the more even their weights.
        max_turns: turns at most, from 0.
        tolerance: ends when a turn lowers the objective by at most this part of it.
        smoothing: as in `geometric_median`.

    Returns:
        z, every row's weight in it, and the distances to it as scores. Selected are the rows with
        alpha above 0. Every row starts with an equal vote; self-reported sample counts play no
        part.

    Raises:
        AggregationError: if an argument is out of range or any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit.
        Within the convex hull of the selected rows; rows that are all equal give that row.
        With fewer than half of the rows arbitrary, stays within a bound set by the others; rows
        far beyond it are not selected.
        As `regularization` grows, tends to the geometric median.

    Cost: O(n^2 d) time, O(n^2 + block) memory.
    References: Li, Ngai and Voigt (2022), doi:10.1109/TII.2021.3128164, Algorithm 1, where lambda
    is an absolute number: neither scaling nor the dimension must move it, hence the median.
    """
    return combine_by_gram(
        rows,
        lambda gram, _: auto_geometric_median_weights(
            gram,
            regularization=regularization,
            max_turns=max_turns,
            tolerance=tolerance,
            smoothing=smoothing,
        ),
    )


def apply(rows: Rows, _context: Context, _config: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    return auto_geometric_median(rows)


def auto_geometric_median_weights(
    gram: Gram,
    *,
    regularization: float = 1.0,
    max_turns: int = 500,
    tolerance: float = 1e-9,
    smoothing: float = 1e-6,
) -> Combination:
    """Express AutoGM's centre as a convex combination; scores are the distances to it.

    Raises:
        AggregationError: if an argument is out of range.
    """
    if not 0.0 < regularization < math.inf:
        message = f"regularization={regularization} of auto-geometric-median must be finite and"
        message += " above 0"
        raise AggregationError(message)
    if max_turns < 0:
        message = f"max_turns={max_turns} of auto-geometric-median must be at least 0"
        raise AggregationError(message)
    require_settings("auto-geometric-median", tolerance, smoothing)
    alphas = equal_votes(gram.num_rows)
    found, typical = central_start(gram, alphas)
    # A turn starts where the one before ended: few of these steps are ever taken.
    steps = Steps(least_distance=smoothing * typical, most=200, tolerance=1e-10)
    found = weiszfeld(gram, alphas, found, steps)
    distances = distances_to_center(gram, found)
    lambda_abs = regularization * gram.num_rows * float(np.median(distances))
    objective = math.inf
    for _ in range(max_turns):
        alphas = water_filling(distances, lambda_abs)
        found = weiszfeld(gram, alphas, found, steps)
        distances = distances_to_center(gram, found)
        before, objective = objective, _objective(alphas, distances, lambda_abs)
        if before - objective <= tolerance * objective:
            break
    return Combination(weights=found, scores=distances)


def _objective(alphas: Floats, distances: Floats, lambda_abs: float) -> float:
    return float((alphas * distances).sum() + 0.5 * lambda_abs * (alphas * alphas).sum())
