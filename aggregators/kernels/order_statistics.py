"""Order statistics of each coordinate, from columns that a network has sorted."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators.kernels.compiler import kernel
from aggregators.kernels.mixing import mix_columns
from aggregators.kernels.simd import (
    LANES,
)
from aggregators.kernels.sorting_network import (
    BLOCK_COLUMNS,
    LARGEST,
    sort_columns,
)
from aggregators.kernels.weighted_sum import DOUBTFUL

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Scratch = NDArray[np.float32]


@kernel
def _median(scratch: Scratch, num_rows: int, width: int, middle: Floats) -> None:
    """Average the two middle values of sorted columns; one value where n is odd."""
    low, high = (num_rows - 1) // 2, num_rows // 2
    for column in range(width):
        pair = np.float64(scratch[low, column]) + np.float64(scratch[high, column])
        middle[column] = 0.5 * pair


@kernel
def _exact_sum(scratch: Scratch, first: int, last: int, column: int) -> float:
    """Sum part of a column with the error of every addition carried along (Knuth's TwoSum)."""
    total = 0.0
    rest = 0.0
    for row in range(first, last):
        term = np.float64(scratch[row, column])
        new = total + term
        part = new - total
        rest += (total - (new - part)) + (term - part)
        total = new
    return total + rest


@kernel
def _mean_of_ranks(
    scratch: Scratch,
    first: int,
    last: int,
    width: int,
    sums: Floats,
    sizes: Floats,
    out: NDArray[np.float32],
) -> None:
    """Average sorted values of ranks `first` to `last` - 1; the result lies between them."""
    sums[:width] = 0.0
    sizes[:width] = 0.0
    for row in range(first, last):
        for column in range(width):
            value = np.float64(scratch[row, column])
            sums[column] += value
            sizes[column] += abs(value)
    count = last - first
    for column in range(width):
        if abs(sums[column]) < sizes[column] * count * DOUBTFUL:
            sums[column] = _exact_sum(scratch, first, last, column)
        mean = np.float32(sums[column] / count)
        within = min(max(mean, scratch[first, column]), scratch[last - 1, column])
        out[column] = within + np.float32(0.0)


@kernel
def _mean_around(
    scratch: Scratch,
    num_rows: int,
    keep: int,
    width: int,
    middle: Floats,
    moved: Floats,
    sums: Floats,
    out: NDArray[np.float32],
) -> None:
    """Average the `keep` sorted values nearest to the median, of two equally near the lesser.

    They are neighbours in the order. The window starts at the least value and moves on by one
    while the value it would gain is nearer than the one it would lose.
    """
    for row in range(num_rows - keep):
        for column in range(width):
            gained = np.float64(scratch[row + keep, column]) - middle[column]
            lost = middle[column] - np.float64(scratch[row, column])
            moved[row, column] = 1.0 if gained < lost else 0.0
    sums[:width] = 0.0
    for row in range(num_rows):
        for column in range(width):
            kept = 1.0 if row < keep else moved[row - keep, column]
            if row < num_rows - keep:
                kept *= 1.0 - moved[row, column]
            sums[column] += kept * np.float64(scratch[row, column])
    for column in range(width):
        out[column] = np.float32(sums[column] / keep) + np.float32(0.0)


MEDIAN: Final = 0
MEAN_OF_RANKS: Final = 1
MEAN_AROUND_MEDIAN: Final = 2


@kernel
def order_statistic(
    addresses: Ints,
    scales: Floats,
    matrix: Floats,
    merges: Ints,
    num_rows: int,
    statistic: int,
    size: int,
    start: int,
    stop: int,
    out: NDArray[np.float32],
) -> bool:
    """Write a statistic of each column from `start` up to `stop`.

    Args:
        addresses: (p,), of rows of float32. Without a matrix p is n rounded up to a multiple of
            8, filled up with address 0.
        scales: (p,): rows are multiplied and rounded to float32 first, unless it is 1.
        matrix: (m, p), with m the number of mixed rows rounded up to a multiple of 8: the
            statistic is that of matrix @ rows. (0, 0): of the rows themselves.
        merges: from `merges_for`, for all ranks the statistic needs.
        num_rows: rows, or mixed rows, that count.
        statistic: `MEDIAN`, `MEAN_OF_RANKS` or `MEAN_AROUND_MEDIAN`.
        size: values dropped at each end (mean of ranks) or kept (around the median).
        start: first column.
        stop: last column + 1; `stop - start` is a multiple of 16.
        out: (d,).

    Returns:
        Whether every value is finite.
    """
    is_mixed = len(matrix) > 0
    num_padded = len(matrix) if is_mixed else len(addresses)
    # A row's start moves by a cache line, or all rows would share the same cache sets.
    scratch = np.empty((num_padded, BLOCK_COLUMNS + LANES), dtype=np.float32)
    mixed = np.empty((num_padded if is_mixed else 0, BLOCK_COLUMNS + LANES), dtype=np.float32)
    places = np.zeros(num_padded, dtype=np.int64)
    for row in range(num_rows if is_mixed else 0):
        places[row] = mixed.ctypes.data + 4 * mixed.shape[1] * row
    plain = np.ones(num_padded)
    filler = np.full(BLOCK_COLUMNS, LARGEST, dtype=np.float32)
    middle = np.empty(BLOCK_COLUMNS)
    sums = np.empty(BLOCK_COLUMNS)
    sizes = np.empty(BLOCK_COLUMNS)
    moved = np.empty((num_rows - size if statistic == MEAN_AROUND_MEDIAN else 0, BLOCK_COLUMNS))
    is_finite = True
    for left in range(start, stop, BLOCK_COLUMNS):
        width = min(BLOCK_COLUMNS, stop - left)
        if is_mixed:
            is_finite &= mix_columns(addresses, scales, matrix, left, width, mixed)
            is_finite &= sort_columns(places, plain, merges, 0, width, filler.ctypes.data, scratch)
        else:
            is_finite &= sort_columns(
                addresses, scales, merges, left, width, filler.ctypes.data, scratch
            )
        part = out[left : left + width]
        if statistic == MEAN_OF_RANKS:
            _mean_of_ranks(scratch, size, num_rows - size, width, sums, sizes, part)
        else:
            _median(scratch, num_rows, width, middle)
            if statistic == MEAN_AROUND_MEDIAN:
                _mean_around(scratch, num_rows, size, width, middle, moved, sums, part)
            else:
                for column in range(width):
                    # Which of two zeros is in the middle is chance: every zero is positive.
                    part[column] = np.float32(middle[column]) + np.float32(0.0)
    return is_finite
