"""The weighted median of each coordinate: values are sorted together with the rows they are of."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numpy.typing import NDArray

from aggregators.kernels.cell_products import MAX_FINITE_BITS, stage
from aggregators.kernels.compiler import intrinsic, kernel
from aggregators.kernels.mixing import mix_columns
from aggregators.kernels.simd import (
    I32,
    I64,
    LANES,
    V16F32,
    V16I32,
    Emitter,
)
from aggregators.kernels.sorting_network import (
    BLOCK_COLUMNS,
    BLOCK_ROWS,
    LARGEST,
    MERGE,
    SORT,
    VECTOR_BYTES,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Scratch = NDArray[np.float32]


def _exchange_labelled(
    emit: Emitter, values: list[Any], labels: list[Any], pairs: list[tuple[int, int]]
) -> None:
    """Compare-exchange values with their labels; of equal values the lesser label goes first."""
    builder = emit.builder
    for low, high in pairs:
        is_less = builder.fcmp_ordered("<", values[low], values[high])
        is_equal = builder.fcmp_ordered("==", values[low], values[high])
        is_earlier = builder.icmp_signed("<", labels[low], labels[high])
        keep = builder.or_(is_less, builder.and_(is_equal, is_earlier))
        for items in (values, labels):
            items[low], items[high] = (
                builder.select(keep, items[low], items[high]),
                builder.select(keep, items[high], items[low]),
            )


@intrinsic
def _sort_labelled(
    typing_context: Any, values: Any, labels: Any, stride: Any, first_label: Any, count: Any
) -> Any:
    """Sort eight scratch rows in place and label every value with the row it came from."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, labels, stride, first_label, count = arguments
        emit = Emitter(builder)
        first = builder.trunc(first_label, I32)
        own = [
            emit.broadcast(builder.add(first, ir.Constant(I32, row)), LANES)
            for row in range(BLOCK_ROWS)
        ]
        steps = [builder.mul(stride, emit.integer(row)) for row in range(BLOCK_ROWS)]
        with cgutils.for_range(builder, count, intp=I64) as loop:
            at = builder.mul(loop.index, emit.integer(VECTOR_BYTES))
            places = [builder.add(step, at) for step in steps]
            loaded = [emit.load(builder.add(values, place), V16F32) for place in places]
            names = list(own)
            _exchange_labelled(emit, loaded, names, SORT)
            for place, value, name in zip(places, loaded, names, strict=True):
                emit.store(value, builder.add(values, place))
                emit.store(name, builder.add(labels, place))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@intrinsic
def _merge_labelled(
    typing_context: Any, values: Any, labels: Any, low: Any, high: Any, stride: Any, count: Any
) -> Any:
    """Merge two sorted blocks of eight scratch rows with their labels.

    low, high: byte offsets of the blocks.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, labels, low, high, stride, count = arguments
        emit = Emitter(builder)
        steps = [
            builder.add(block, builder.mul(stride, emit.integer(row)))
            for block in (low, high)
            for row in range(BLOCK_ROWS)
        ]
        with cgutils.for_range(builder, count, intp=I64) as loop:
            at = builder.mul(loop.index, emit.integer(VECTOR_BYTES))
            places = [builder.add(step, at) for step in steps]
            loaded = [emit.load(builder.add(values, place), V16F32) for place in places]
            names = [emit.load(builder.add(labels, place), V16I32) for place in places]
            _exchange_labelled(emit, loaded, names, MERGE)
            for place, value, name in zip(places, loaded, names, strict=True):
                emit.store(value, builder.add(values, place))
                emit.store(name, builder.add(labels, place))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen


@kernel
def _weighted_median(
    scratch: Scratch,
    labels: NDArray[np.int32],
    weights: Floats,
    first: int,
    last: int,
    width: int,
    out: NDArray[np.float32],
) -> None:
    """Write the weighted median of the sorted values of ranks `first` to `last` - 1."""
    totals = np.zeros(width)
    for rank in range(first, last):
        for column in range(width):
            totals[column] += weights[labels[rank, column]]
    below = np.zeros(width)
    lower = scratch[last - 1, :width].copy()
    upper = lower.copy()
    # Backwards, so that the first rank that reaches half of the weight is the one that stays.
    above = np.zeros(width)
    for rank in range(last - 1, first - 1, -1):
        for column in range(width):
            below[column] = totals[column] - above[column]
            if 2.0 * below[column] >= totals[column]:
                lower[column] = scratch[rank, column]
            if 2.0 * below[column] > totals[column]:
                upper[column] = scratch[rank, column]
            above[column] += weights[labels[rank, column]]
    for column in range(width):
        pair = np.float64(lower[column]) + np.float64(upper[column])
        out[column] = np.float32(0.5 * pair) + np.float32(0.0)


@kernel
def weighted_median(
    addresses: Ints,
    scales: Floats,
    matrix: Floats,
    merges: Ints,
    weights: Floats,
    num_rows: int,
    trim: int,
    start: int,
    stop: int,
    out: NDArray[np.float32],
) -> bool:
    """Write the weighted median of each column's values but the `trim` smallest and largest.

    Of equal values those of earlier rows are the lesser. `weights`: (m,), not negative, 0 for rows
    that fill up; `merges`: of all blocks; else see `order_statistic`.
    """
    is_mixed = len(matrix) > 0
    num_padded = len(matrix) if is_mixed else len(addresses)
    scratch = np.full((num_padded, BLOCK_COLUMNS + LANES), LARGEST, dtype=np.float32)
    labels = np.empty((num_padded, BLOCK_COLUMNS + LANES), dtype=np.int32)
    stride = 4 * (BLOCK_COLUMNS + LANES)
    is_finite = True
    for left in range(start, stop, BLOCK_COLUMNS):
        width = min(BLOCK_COLUMNS, stop - left)
        if is_mixed:
            is_finite &= mix_columns(addresses, scales, matrix, left, width, scratch)
        for row in range(num_rows if not is_mixed else 0):
            source = addresses[row] + 4 * left
            target = scratch.ctypes.data + stride * row
            bits = stage(source, scales[row], target, width // LANES, source)
            is_finite &= bits <= MAX_FINITE_BITS
        for row in range(num_rows, num_padded):
            scratch[row, :width] = LARGEST
        for block in range(num_padded // BLOCK_ROWS):
            offset = stride * BLOCK_ROWS * block
            _sort_labelled(
                scratch.ctypes.data + offset,
                labels.ctypes.data + offset,
                stride,
                block * BLOCK_ROWS,
                width // LANES,
            )
        for step in range(len(merges)):
            _merge_labelled(
                scratch.ctypes.data,
                labels.ctypes.data,
                stride * BLOCK_ROWS * merges[step, 0],
                stride * BLOCK_ROWS * merges[step, 1],
                stride,
                width // LANES,
            )
        _weighted_median(
            scratch, labels, weights, trim, num_rows - trim, width, out[left : left + width]
        )
    return is_finite
