"""Nearest-neighbour mixing (NNM): every update becomes the mean of those nearest to it.

Rows that are drawn towards each other leave a robust rule less room for error when devices hold
different data. Any rule may follow, with the same f.
"""

import numpy as np

from aggregators.registry import require_tolerated
from aggregators.rows.dense_rows import RowsLike, as_rows
from aggregators.rows.gram import Gram
from aggregators.rows.rows import Floats, Rows, canonical_order


def nearest_neighbour_mixing(rows: RowsLike, *, num_byzantine: int) -> Rows:
    """Replace each row by the mean of the n - f rows nearest to it, itself included.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        num_byzantine: f, rows that may be arbitrary; n >= 2 f + 1.

    Returns:
        n mixed rows, mixed anew whenever they are read; row i is the one around row i.

    Raises:
        TooFewUpdatesError: if n < 2 f + 1.
        AggregationError: if `num_byzantine` is negative or any entry is not finite.

    Guarantees:
        Permuting the rows permutes the result, bit for bit: of rows equally near the
        lexicographically lesser ones are mixed.
        With num_byzantine=0 every row becomes the mean.
        With at most f arbitrary rows, the mixed row of each of the others is no farther from it
        than the farthest other one of those is.

    Cost: O(n^2 d) for the distances and again for each read, O(n^2 + block) memory.
    References: Allouah et al. (2023), arXiv:2302.01772, Algorithm 2.
    """
    matrix = as_rows(rows)
    require_tolerated("nnm", matrix.num_rows, num_byzantine)
    order = canonical_order(matrix)
    mixing = nearest_neighbour_mixing_matrix(matrix.gram().take(order), num_byzantine=num_byzantine)
    back = np.argsort(order)
    return matrix.take(order).mixed(mixing[back])


def nearest_neighbour_mixing_matrix(gram: Gram, *, num_byzantine: int) -> Floats:
    """Give each row's n - f nearest rows equal weights.

    Args:
        gram: of n rows; n >= 2 f + 1.
        num_byzantine: f.

    Returns:
        (n, n), float64: n - f entries of 1 / (n - f) in every row, on the diagonal among them, and
        zeros. Of rows equally near the first ones count.

    Raises:
        TooFewUpdatesError: if n < 2 f + 1.
        AggregationError: if `num_byzantine` is negative.
    """
    num_rows = gram.num_rows
    require_tolerated("nnm", num_rows, num_byzantine)
    count = num_rows - num_byzantine
    distances = gram.squared_distances.copy()
    # A row is its own nearest, also where copies of it come first.
    np.fill_diagonal(distances, -1.0)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :count]
    mixing = np.zeros((num_rows, num_rows))
    np.put_along_axis(mixing, nearest, 1.0 / count, axis=1)
    return mixing
