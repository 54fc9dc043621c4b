"""Pairwise distances between updates, without cancellation."""

import numpy as np
from numpy.typing import NDArray

from aggregators.rows import Rows, Vector


def squared_distances(rows: Rows) -> NDArray[np.float64]:
    """Compute the squared Euclidean distance of every two rows.

    Rows are centred at their coordinate-wise lower median before the Gram matrix G is
    accumulated in float64, and D_ij = G_ii + G_jj - 2 G_ij. An arbitrary centre would let one row
    far away cancel the digits that tell the others apart. The median cannot be dragged: in every
    coordinate at least half of the rows lie on its other side, seen from row i. Dropping any
    f + 1 of them, with n >= 2 f + 3, leaves at least one, so G_ii is at most the sum of row i's
    distances to any n - f - 2 others. Hence the sums of distances that Krum compares carry a
    relative error of O(n) roundings, whatever the data.

    Args:
        rows: n rows of d finite values. The last bits of the result depend on their order.

    Returns:
        (n, n), float64, symmetric, not negative, zero on the diagonal.

    Raises:
        AggregationError: if an entry is NaN or infinite.

    Cost: O(n^2 d) time, O(n^2 + block) memory.
    """
    gram = np.zeros((rows.num_rows, rows.num_rows), dtype=np.float64)
    for _, block in rows.blocks():
        centred = block.astype(np.float64)
        np.subtract(centred, _lower_median(block).astype(np.float64), out=centred)
        gram += centred @ centred.T
    norms = np.diagonal(gram)
    distances: NDArray[np.float64] = norms[:, np.newaxis] + norms - 2.0 * gram
    np.maximum(distances, 0.0, out=distances)
    np.fill_diagonal(distances, 0.0)
    return distances


def _lower_median(block: Vector) -> Vector:
    """Select the lower middle value of each column."""
    middle = (block.shape[0] - 1) // 2
    # Selecting along contiguous memory is twice as fast as along columns.
    columns = np.ascontiguousarray(block.T)
    columns.partition(middle, axis=1)
    median: Vector = columns[:, middle]
    return median
