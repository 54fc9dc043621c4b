"""The weighted mean: federated averaging."""

import math

import numpy as np
from numpy.typing import NDArray

from aggregators.numerics import weighted_mean
from aggregators.rows import RowsLike, as_rows
from aggregators.rule import RuleResult


def mean(rows: RowsLike, *, weights: NDArray[np.float64]) -> RuleResult:
    """Average the rows by weight.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        weights: (n,), float64; each 0 or in 2**-512..2**53, not all 0. Usually sample counts.

    Returns:
        The average; rows of weight 0 count as not selected.

    Raises:
        AggregationError: if a weight is out of range or any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit.
        With integer weights below 2**29, correct to a few units in the last place for values
        from 1e-8 to 1e8, even where they cancel.
        Not robust: one row can move the result anywhere.

    Cost: O(n d) time, O(block) memory.
    References: McMahan et al. (2017), arXiv:1602.05629, Algorithm 1.
    """
    vector = weighted_mean(as_rows(rows), weights)
    return RuleResult(
        vector=vector,
        weights=weights / math.fsum(weights.tolist()),
        selected=weights > 0,
    )
