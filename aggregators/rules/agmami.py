"""aGMaMI: automatic weights from one-dimensional geometric medians of mutual information."""

import math
from typing import Final

import numpy as np

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.preaggregations.clipping import median_clipping_factors
from aggregators.rows.dense_rows import RowsLike, as_rows
from aggregators.rows.rows import Floats, Rows, canonical_order
from aggregators.rule import Combination, Context, RuleResult, combine_in_order, needed
from aggregators.rules.mutual_information import information_scores, require_outputs
from aggregators.rules.water_filling import water_filling

_MAX_STEPS: Final = 100
_HALF_TOLERANCE: Final = 1e-12  # weights that sum to one half do so up to rounding


def agmami(
    rows: RowsLike,
    *,
    probe_outputs: Floats,
    regularization: float = 0.3,
    alpha_weighted: bool = False,
    clip_factor: float = 1.5,
) -> RuleResult:
    """Average the clipped rows whose model shares about the usual information with the others.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        probe_outputs: (n, S, K), float64: what the model with row i applied answers on S probe
            samples, as K logits each; see `pairwise_information`.
        regularization: lambda, nats, finite and at least 0: the larger, the more rows are kept
            and the more even their weights; multiplied by n.
        alpha_weighted: average the kept rows by their weights alpha rather than equally.
        clip_factor: rows longer than this times the median norm are shortened to it; above 0. A
            model of enormous weights may answer as usual, so its score does not stop it.

    Returns:
        The average of the kept rows, and how far every score lies from the centre, in nats.

    Raises:
        AggregationError: if another argument is out of range or any entry of a row is not finite.

    Guarantees:
        Invariant to row order, bit for bit.
        The norm of the result is at most `clip_factor` times the median norm, up to rounding.
        Keeps at least one row; keeps every row if all scores are equal.

    Cost: O(n^2 S K + n d) time, O(n^2 + block) memory, beside what the models' answers cost.
    References: github.com/ashim9788/agmami, which does not clip and whose list of distances grows
        from one step to the next. Weights: Li, Ngai and Voigt (2022),
        doi:10.1109/TII.2021.3128164, Algorithm 1.
    """
    if not 0.0 <= regularization < math.inf:
        message = f"regularization={regularization} of agmami must be finite and at least 0"
        raise AggregationError(message)
    if not 0.0 < clip_factor < math.inf:
        message = f"clip_factor={clip_factor} of agmami must be finite and above 0"
        raise AggregationError(message)
    matrix = as_rows(rows)
    require_outputs(probe_outputs, matrix.num_rows)
    scores = information_scores(probe_outputs)
    order = canonical_order(matrix, (scores,))
    kept = agmami_weights(
        scores[order], regularization=regularization, alpha_weighted=alpha_weighted
    )
    norms = matrix.take(order).norms()
    clipped = Combination(
        weights=kept.weights * median_clipping_factors(norms, factor=clip_factor),
        total=kept.total,
        scores=kept.scores,
    )
    return combine_in_order(matrix, order, clipped)


def apply(rows: Rows, context: Context, _: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    return agmami(rows, probe_outputs=needed(context.probe_outputs, "probe_outputs"))


def agmami_weights(
    scores: Floats, *, regularization: float = 0.3, alpha_weighted: bool = False
) -> Combination:
    """Weigh rows by their information scores alone, before clipping.

    Alternates between the weighted median z of the scores, their geometric median in one
    dimension, and the weights that are best for z, until z stays.

    Args:
        scores: (n,), float64, finite, nats: see `information_scores`.
        regularization: lambda, nats, finite and at least 0; multiplied by n.
        alpha_weighted: answer with the weights themselves rather than with 1 for those above 0.
    """
    strength = regularization * len(scores)
    center = float(np.median(scores))
    alphas = water_filling(np.abs(scores - center), strength)
    for _ in range(_MAX_STEPS):
        moved = _weighted_median(scores, alphas)
        if moved == center:
            break
        center = moved
        alphas = water_filling(np.abs(scores - center), strength)
    weights = alphas if alpha_weighted else (alphas > 0.0).astype(np.float64)
    return Combination(
        weights=weights, total=math.fsum(weights.tolist()), scores=np.abs(scores - center)
    )


def _weighted_median(values: Floats, weights: Floats) -> float:
    """Take the middle of the values that have half of the weight on either side."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order])
    half = 0.5 * below[-1]
    lower = np.argmax(below >= half * (1.0 - _HALF_TOLERANCE))
    upper = np.argmax(below > half * (1.0 + _HALF_TOLERANCE))
    return float(0.5 * (values[order[lower]] + values[order[upper]]))
