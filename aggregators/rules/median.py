"""The coordinate-wise median."""

import numpy as np

from aggregators.rows import RowsLike, as_rows
from aggregators.rule import RuleResult, all_selected, equal_votes


def median(rows: RowsLike) -> RuleResult:
    """Take the median of each coordinate; for even n the average of the two middle values.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.

    Returns:
        The median. Every row has an equal vote; self-reported sample counts play no part.

    Raises:
        AggregationError: if any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit.
        With fewer than half of the rows arbitrary, every output coordinate lies within the range
        of the remaining rows.

    Cost: O(n d) time on average, O(block) memory.
    References: Yin et al. (2018), arXiv:1803.01498, Definition 1.
    """
    matrix = as_rows(rows)
    upper = matrix.num_rows // 2
    vector = np.empty(matrix.dim, dtype=np.float64)
    for columns, block in matrix.blocks():
        # Selecting along contiguous memory is twice as fast as along columns.
        values = np.ascontiguousarray(block.T)
        values.partition(upper, axis=1)
        middle = values[:, upper].astype(np.float64)
        if matrix.num_rows % 2 == 0:
            middle += values[:, :upper].max(axis=1)
            middle *= 0.5
        # Which of two equal zeros is the median depends on the order of the rows: take 0.0.
        vector[columns] = middle + 0.0
    return RuleResult(
        vector=vector,
        weights=equal_votes(matrix.num_rows),
        selected=all_selected(matrix.num_rows),
    )
