"""The geometric median: the point with the least sum of distances to the updates."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.rows.dense_rows import RowsLike, as_rows
from aggregators.rows.gram import Gram
from aggregators.rows.rows import Rows
from aggregators.rule import Combination, Context, RuleResult, combine_by_gram, equal_votes
from aggregators.rules.center_distances import distances_to_center
from aggregators.rules.mean import require_weights

Floats = NDArray[np.float64]

_PATIENCE: Final = 8  # most rows need fewer steps
_MARGIN: Final = 16.0
_ROUNDING: Final = 2.0**-30


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """How Weiszfeld steps are taken.

    Attributes:
        least_distance: lesser distances count as this one.
        most: steps at most.
        tolerance: they end when one moves less than this part of the distances' harmonic mean.
    """

    least_distance: float
    most: int
    tolerance: float


def geometric_median(
    rows: RowsLike,
    *,
    weights: Floats | None = None,
    max_steps: int = 100,
    tolerance: float = 1e-8,
    smoothing: float = 1e-6,
) -> RuleResult:
    """Find the point z that minimises sum_i q_i |x_i - z|, by smoothed Weiszfeld steps.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        weights: q, (n,), float64; each 0 or in 2**-512..2**53, not all 0. None: equal weights.
        max_steps: Weiszfeld steps at most, from 0. About 3 are usual where each step costs a
            secure aggregation.
        tolerance: ends when a step moves z by less than this part of the harmonic mean of the
            distances.
        smoothing: nu, above 0: the distance, as a part of the typical one, below which a row
            pulls no harder than a row at that distance.

    Returns:
        z, every row's weight in it, which falls with its distance, and the distances as scores.

    Raises:
        AggregationError: if an argument is out of range or any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit.
        Within the convex hull of the rows; rows that are all equal give that row.
        With less than half of the weight on arbitrary rows, stays within a bound set by the
        others.
        Where it ends before `max_steps`, the sum of distances is at most
        1 + 4 (tolerance + smoothing) times the least.

    Cost: O(n^2 d) time, O(n^2 + block) memory.
    References: Pillutla et al. (2022), arXiv:1912.13445, Algorithm 2; it starts from the average,
    which one row can move anywhere, this from the rows around the medoid. A row that is the
    median is found as Kuhn (1973), doi:10.1007/BF01584648, tells it.
    """
    matrix = as_rows(rows)
    votes = equal_votes(matrix.num_rows) if weights is None else weights
    require_weights(votes, matrix.num_rows)
    return combine_by_gram(
        matrix,
        lambda gram, order: geometric_median_weights(
            gram,
            weights=votes[order],
            max_steps=max_steps,
            tolerance=tolerance,
            smoothing=smoothing,
        ),
        keys=(votes,),
    )


def apply(rows: Rows, context: Context, config: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    steps = {} if config.max_steps is None else {"max_steps": config.max_steps}
    return geometric_median(rows, weights=context.weights, **steps)


def geometric_median_weights(
    gram: Gram,
    *,
    weights: Floats,
    max_steps: int = 100,
    tolerance: float = 1e-8,
    smoothing: float = 1e-6,
) -> Combination:
    """Express the geometric median as a convex combination; scores are the distances to it.

    Raises:
        AggregationError: if an argument is out of range.
    """
    require_weights(weights, gram.num_rows)
    if max_steps < 0:
        message = f"max_steps={max_steps} of geometric-median must be at least 0"
        raise AggregationError(message)
    require_settings("geometric-median", tolerance, smoothing)
    votes = weights / math.fsum(weights.tolist())
    start, typical = central_start(gram, votes)
    steps = Steps(least_distance=smoothing * typical, most=max_steps, tolerance=tolerance)
    found = weiszfeld(gram, votes, start, steps)
    return Combination(weights=found, scores=distances_to_center(gram, found))


def require_settings(rule: str, tolerance: float, smoothing: float) -> None:
    """Refuse settings no Weiszfeld iteration could follow.

    Raises:
        AggregationError: if one is out of range.
    """
    if not 0.0 <= tolerance < math.inf:
        message = f"tolerance={tolerance} of {rule} must be finite and at least 0"
        raise AggregationError(message)
    if not 0.0 < smoothing < math.inf:
        message = f"smoothing={smoothing} of {rule} must be finite and above 0"
        raise AggregationError(message)


def central_start(gram: Gram, votes: Floats) -> tuple[Floats, float]:
    """Average the nearest rows around the medoid that hold more than half of the votes.

    Args:
        gram: of n rows.
        votes: (n,), float64, not negative, sums to 1.

    Returns:
        The weights of that average, (n,), and the radius around the medoid that it took.

    Guarantees:
        Less than half of the votes cannot move it beyond a bound set by the others, and at least
        one of those is within the radius.
    """
    distances = np.sqrt(gram.squared_distances[_medoid(gram, votes)])
    order = np.argsort(distances, kind="stable")
    reached = np.cumsum(votes[order])
    # Rounding may leave the sum of the votes a little below 1, never at half of it.
    radius = float(distances[order[int(np.argmax(reached > 0.5))]])
    near = np.where(distances <= radius, votes, 0.0)
    return near / near.sum(), radius


def weiszfeld(gram: Gram, votes: Floats, start: Floats, steps: Steps) -> Floats:
    """Reweight rows by votes over distance until the centre rests.

    Args:
        gram: of n rows.
        votes: q, (n,), float64, not negative, sums to 1.
        start: (n,), float64, not negative, sums to 1: the first centre.
        steps: how far and how finely to go.

    Returns:
        a, (n,), float64, not negative, sums to 1: the centre is sum_i a_i x_i.
    """
    found = start
    for count in range(steps.most):
        if count == _PATIENCE:
            resting = _row_at_rest(gram, votes)
            if resting is not None:
                return resting
        distances = distances_to_center(gram, found)
        bounded = np.maximum(distances, steps.least_distance)
        nearest = float(bounded[votes > 0.0].min())
        if nearest == 0.0:
            # The limit of vanishing smoothing: rows at the centre hold it there.
            pulls = np.where(distances == 0.0, votes, 0.0)
        else:
            # Ratios to the nearest: 1 / distance would overflow for tiny updates.
            pulls = votes * (nearest / np.maximum(bounded, nearest))
        moved = pulls / pulls.sum()
        # The centre moves by at most this. Against the harmonic mean of the distances, which no
        # far row can blow up, it is the slope of the average distance: a bound on what is left.
        step = float((np.abs(moved - found) * distances).sum())
        scale = float((moved * bounded).sum())
        found = moved
        if step <= steps.tolerance * scale:
            break
    return found


def _medoid(gram: Gram, votes: Floats) -> int:
    """Find the row with the least sum of distances to the others."""
    return int(np.argmin((np.sqrt(gram.squared_distances) * votes).sum(axis=1)))


def _row_at_rest(gram: Gram, votes: Floats) -> Floats | None:
    """Weigh the rows equal to the one that is a geometric median, if a row is.

    Weiszfeld steps take forever to reach a row. It is a median if the others, each pulling by its
    vote, do not pull harder together than the votes at the row hold (Kuhn 1973). No other row
    than the medoid can be.
    """
    medoid = _medoid(gram, votes)
    away = gram.squared_distances[medoid] > 0.0
    pulls = np.where(away, votes, 0.0)
    held = np.where(away, 0.0, votes)
    pulled = float(((_directions(gram, medoid) * pulls).sum(axis=1) * pulls).sum())
    total = float(held.sum())
    return held / total if pulled <= total * total * (1.0 + _ROUNDING) else None


def _directions(gram: Gram, row: int) -> Floats:
    """Compute the cosines, (n, n), between the differences of all rows from one row.

    As in `distances_to_center`, those of far rows come from the inner products.
    """
    squares = gram.squared_distances[row]
    lengths = np.sqrt(np.where(squares > 0.0, squares, 1.0))
    reach = gram.norms + gram.norms[row]
    along = gram.inner[row]
    both = squares[:, np.newaxis] + squares
    coarse = _MARGIN * np.multiply.outer(reach, reach) < both + gram.squared_distances
    products = np.where(
        coarse,
        gram.inner - along[:, np.newaxis] - along + along[row],
        0.5 * (both - gram.squared_distances),
    )
    cosines: Floats = np.clip(products / lengths / lengths[:, np.newaxis], -1.0, 1.0)
    return cosines
