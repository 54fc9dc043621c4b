"""Norm thresholding: the mean of the updates that are not too long."""

import math

import numpy as np

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.rows.dense_rows import RowsLike, as_rows
from aggregators.rows.rows import Floats, Rows, canonical_order
from aggregators.rule import Combination, Context, RuleResult, combine_in_order


def norm_threshold(
    rows: RowsLike, *, max_norm: float | None = None, factor: float | None = None
) -> RuleResult:
    """Average the rows whose L2 norm is at most a bound, and drop the others.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        max_norm: the bound; finite, above 0.
        factor: the bound divided by the median of the norms; finite, at least 1. Exactly one of
            `max_norm` and `factor` is given.

    Returns:
        The average with equal weights; the zero vector, with no row selected, where all rows are
        longer than `max_norm`. Scores are norms. Self-reported sample counts play no part.

    Raises:
        AggregationError: if an argument is out of range or any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit.
        The result is no longer than the bound, up to rounding.
        With `factor`, all rows up to the median norm stay; with fewer than half of the rows
        arbitrary the bound is at most `factor` times the longest of the others.
        Not robust to rows of ordinary length in a harmful direction.

    Cost: O(n d) time, O(block) memory.
    References: Sun et al. (2019), arXiv:1911.07963, "norm thresholding of updates": they drop long
        updates, as here, or shrink them, as `aggregators.preaggregations.clipping` does.
    """
    matrix = as_rows(rows)
    order = canonical_order(matrix)
    combination = norm_threshold_weights(matrix.norms()[order], max_norm=max_norm, factor=factor)
    return combine_in_order(matrix, order, combination)


def apply(rows: Rows, _: Context, config: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    return norm_threshold(rows, factor=config.norm_factor)


def norm_threshold_weights(
    norms: Floats, *, max_norm: float | None = None, factor: float | None = None
) -> Combination:
    """Give rows no longer than the bound equal weights.

    Args:
        norms: (n,), float64, finite, not negative.
        max_norm: the bound; finite, above 0.
        factor: the bound divided by the median of the norms; finite, at least 1.

    Returns:
        Weights of 1 or 0, over their number; all 0 where every row is too long.

    Raises:
        AggregationError: if an argument is out of range, or not exactly one of them is given.
    """
    weights = (norms <= _bound(norms, max_norm, factor)).astype(np.float64)
    return Combination(weights=weights, total=max(1.0, float(weights.sum())), scores=norms.copy())


def _bound(norms: Floats, max_norm: float | None, factor: float | None) -> float:
    if max_norm is not None and factor is None:
        if 0.0 < max_norm < math.inf:
            return max_norm
        message = f"max_norm={max_norm} of norm-threshold must be finite and above 0"
    elif factor is not None and max_norm is None:
        if 1.0 <= factor < math.inf:
            return factor * float(np.median(norms))
        message = f"factor={factor} of norm-threshold must be finite and at least 1"
    else:
        message = f"exactly one of max_norm={max_norm} and factor={factor} of norm-threshold"
        message += " must be given"
    raise AggregationError(message)
