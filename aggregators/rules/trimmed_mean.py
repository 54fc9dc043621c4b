"""The coordinate-wise trimmed mean."""

import numpy as np

from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.numerics import order_free_sum
from aggregators.rows import RowsLike, as_rows
from aggregators.rule import RuleResult, all_selected, equal_votes


def trimmed_mean(rows: RowsLike, *, trim: int) -> RuleResult:
    """Average each coordinate after dropping its `trim` smallest and largest values.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        trim: values dropped at each end; 0 <= 2 * trim < n.

    Returns:
        The trimmed mean. Every row has an equal vote; self-reported sample counts play no part.

    Raises:
        TooFewUpdatesError: if 2 * trim >= n.
        AggregationError: if `trim` is negative or any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit.
        With at most `trim` arbitrary rows, every output coordinate lies within the range of the
        remaining rows, up to two roundings in float64.

    Cost: O(n d log n) time, O(block) memory.
    References: Yin et al. (2018), arXiv:1803.01498, Definition 2.
    """
    matrix = as_rows(rows)
    kept = matrix.num_rows - 2 * trim
    if trim < 0:
        message = f"trim={trim} must be at least 0"
        raise AggregationError(message)
    if kept < 1:
        message = f"trim={trim} must satisfy 0 <= 2 * trim < n, got n={matrix.num_rows}"
        raise TooFewUpdatesError(message)
    vector = np.empty(matrix.dim, dtype=np.float64)
    for columns, block in matrix.blocks():
        # Sorting along contiguous memory is twice as fast as along columns.
        values = np.ascontiguousarray(block.T)
        values.sort(axis=1)
        terms = values[:, trim : trim + kept].T.astype(np.float64, order="C")
        np.divide(order_free_sum(terms), kept, out=vector[columns])
    return RuleResult(
        vector=vector,
        weights=equal_votes(matrix.num_rows),
        selected=all_selected(matrix.num_rows),
    )
