"""The weighted mean: federated averaging."""

import math

import numpy as np
from numpy.typing import NDArray

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.rows.dense_rows import RowsLike, as_rows
from aggregators.rows.numerics import MAX_WEIGHT, MIN_WEIGHT
from aggregators.rows.rows import Rows, canonical_order
from aggregators.rule import Combination, Context, RuleResult, combine_in_order


def mean(rows: RowsLike, *, weights: NDArray[np.float64] | None = None) -> RuleResult:
    """Average the rows by weight.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        weights: (n,), float64; each 0 or in 2**-512..2**53, not all 0. Usually sample counts.
            None: equal weights.

    Returns:
        The average; rows of weight 0 count as not selected.

    Raises:
        AggregationError: if a weight is out of range or any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit.
        Correct to one rounding to float32 for values from 1e-8 to 1e8, even where they cancel.
        Not robust: one row can move the result anywhere.

    Cost: O(n d) time, O(block) memory.
    References: McMahan et al. (2017), arXiv:1602.05629, Algorithm 1.
    """
    matrix = as_rows(rows)
    votes = np.ones(matrix.num_rows) if weights is None else weights
    require_weights(votes, matrix.num_rows)
    order = canonical_order(matrix, (votes,))
    # fsum rounds once, so the total is as free of the order as the sums of the columns.
    total = math.fsum(votes.tolist())
    return combine_in_order(matrix, order, Combination(weights=votes[order], total=total))


def apply(rows: Rows, context: Context, _: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    return mean(rows, weights=context.weights)


def require_weights(weights: NDArray[np.float64], num_rows: int) -> None:
    """Refuse weights that cannot average n rows.

    Raises:
        AggregationError: if they are not n numbers, each 0 or in 2**-512..2**53, not all 0.
    """
    in_range = (weights == 0) | ((weights >= MIN_WEIGHT) & (weights <= MAX_WEIGHT))
    if weights.shape != (num_rows,) or not in_range.all() or not weights.any():
        message = f"weights={weights} must be one number per row, n={num_rows}, each 0 or in"
        message += f" {MIN_WEIGHT}..{MAX_WEIGHT}, not all 0"
        raise AggregationError(message)
