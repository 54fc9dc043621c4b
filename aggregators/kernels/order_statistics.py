"""Order statistics of each coordinate, by a sorting network across the rows.

Rows are sorted in blocks of eight, and the blocks by a network whose comparators merge two sorted
blocks: a network that sorts values also sorts blocks (Knuth, TAOCP 3, 5.3.4). Every step works on
whole vectors of columns with minimum and maximum only: no branches, no rounding. Merges that
cannot reach a wanted rank are left out.
"""

from functools import lru_cache
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numpy.typing import NDArray

from aggregators.kernels.compiler import intrinsic, kernel
from aggregators.kernels.gram import MAX_FINITE_BITS, stage
from aggregators.kernels.simd import (
    F64,
    HALF,
    I32,
    I64,
    LANES,
    V8F32,
    V8F64,
    V16F32,
    V16I32,
    Emitter,
    odd_even_merge_sort,
)
from aggregators.kernels.weighted_sum import DOUBTFUL

BLOCK_ROWS: Final = 8
"""Rows per sorted block: two blocks fit in the registers."""

MIXED_ROWS: Final = 4
"""Mixed rows are computed four at a time."""

BLOCK_COLUMNS: Final = 256  # of a thousand rows they fit in L2
LARGEST: Final = float(np.finfo(np.float32).max)

_BOTH: Final = 0
_LESSER: Final = 1
_GREATER: Final = 2
_VECTOR_BYTES: Final = 4 * LANES
_SORT: Final = odd_even_merge_sort(BLOCK_ROWS)
_MERGE: Final = odd_even_merge_sort(2 * BLOCK_ROWS)[2 * len(_SORT) :]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Scratch = NDArray[np.float32]


@lru_cache(maxsize=256)
def merges_for(num_blocks: int, first_block: int, last_block: int) -> Ints:
    """Plan the merges that put the right values into blocks `first_block` to `last_block`.

    Returns:
        (steps, 3): the block that gets the lesser half, the one that gets the greater half, and
        whether both (0), only the lesser (1) or only the greater half (2) is wanted.
    """
    wanted = set(range(first_block, last_block + 1))
    merges = []
    for low, high in reversed(odd_even_merge_sort(num_blocks)):
        if low in wanted or high in wanted:
            both = low in wanted and high in wanted
            merges.append((low, high, _BOTH if both else _LESSER if low in wanted else _GREATER))
            wanted |= {low, high}
    return np.array(merges[::-1], dtype=np.int64).reshape(-1, 3)


def _exchange(emit: Emitter, values: list[Any], pairs: list[tuple[int, int]]) -> None:
    for low, high in pairs:
        values[low], values[high] = (
            emit.lesser(values[low], values[high]),
            emit.greater(values[low], values[high]),
        )


@intrinsic
def _sort_rows(
    typing_context: Any, addresses: Any, scales: Any, sorted_rows: Any, stride: Any, count: Any
) -> Any:
    """Sort eight rows, coordinate by coordinate, into scratch rows `stride` bytes apart.

    addresses: of eight row addresses; scales: address of eight float64; count: vectors.
    Returns 1 if a value is not finite.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        addresses, scales, sorted_rows, stride, count = arguments
        emit = Emitter(builder)
        rows = [emit.load(emit.item(addresses, row), I64) for row in range(BLOCK_ROWS)]
        factors = [emit.load(emit.item(scales, row), F64) for row in range(BLOCK_ROWS)]
        outs = [
            builder.add(sorted_rows, builder.mul(stride, emit.integer(row)))
            for row in range(BLOCK_ROWS)
        ]
        one = ir.Constant(F64, 1.0)
        is_plain = ir.Constant(ir.IntType(1), 1)
        for factor in factors:
            is_plain = builder.and_(is_plain, builder.fcmp_ordered("==", factor, one))
        largest = cgutils.alloca_once_value(builder, emit.zeros(V16I32))

        def loop_over_columns(*, scaled: bool) -> None:
            with cgutils.for_range(builder, count, intp=I64) as loop:
                at = builder.mul(loop.index, emit.integer(_VECTOR_BYTES))
                values = [emit.load(builder.add(row, at), V16F32) for row in rows]
                if scaled:
                    values = [
                        emit.scaled(value, factor)
                        for value, factor in zip(values, factors, strict=True)
                    ]
                bits = builder.load(largest)
                for value in values:
                    bits = emit.largest_bits(bits, value)
                builder.store(bits, largest)
                _exchange(emit, values, _SORT)
                for value, out in zip(values, outs, strict=True):
                    emit.store(value, builder.add(out, at))

        with builder.if_else(is_plain) as (then, otherwise):
            with then:
                loop_over_columns(scaled=False)
            with otherwise:
                loop_over_columns(scaled=True)
        return emit.is_not_finite(builder.load(largest))

    return types.int64(*[types.int64] * 5), codegen


@intrinsic
def _merge_blocks(
    typing_context: Any, low: Any, high: Any, stride: Any, count: Any, mode: Any
) -> Any:
    """Merge two sorted blocks of eight scratch rows; write back the halves that are wanted."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        low, high, stride, count, mode = arguments
        emit = Emitter(builder)
        rows = [
            builder.add(block, builder.mul(stride, emit.integer(row)))
            for block in (low, high)
            for row in range(BLOCK_ROWS)
        ]

        def loop_over_columns(first: int, last: int) -> None:
            with cgutils.for_range(builder, count, intp=I64) as loop:
                at = builder.mul(loop.index, emit.integer(_VECTOR_BYTES))
                places = [builder.add(row, at) for row in rows]
                values = [emit.load(place, V16F32) for place in places]
                _exchange(emit, values, _MERGE)
                for value, place in list(zip(values, places, strict=True))[first:last]:
                    emit.store(value, place)

        with builder.if_then(builder.icmp_signed("==", mode, emit.integer(_BOTH))):
            loop_over_columns(0, 2 * BLOCK_ROWS)
        with builder.if_then(builder.icmp_signed("==", mode, emit.integer(_LESSER))):
            loop_over_columns(0, BLOCK_ROWS)
        with builder.if_then(builder.icmp_signed("==", mode, emit.integer(_GREATER))):
            loop_over_columns(BLOCK_ROWS, 2 * BLOCK_ROWS)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


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
            at = builder.mul(loop.index, emit.integer(_VECTOR_BYTES))
            places = [builder.add(step, at) for step in steps]
            loaded = [emit.load(builder.add(values, place), V16F32) for place in places]
            names = list(own)
            _exchange_labelled(emit, loaded, names, _SORT)
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
            at = builder.mul(loop.index, emit.integer(_VECTOR_BYTES))
            places = [builder.add(step, at) for step in steps]
            loaded = [emit.load(builder.add(values, place), V16F32) for place in places]
            names = [emit.load(builder.add(labels, place), V16I32) for place in places]
            _exchange_labelled(emit, loaded, names, _MERGE)
            for place, value, name in zip(places, loaded, names, strict=True):
                emit.store(value, builder.add(values, place))
                emit.store(name, builder.add(labels, place))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen


@kernel
def _sort_columns(
    addresses: Ints,
    scales: Floats,
    merges: Ints,
    left: int,
    width: int,
    filler: int,
    scratch: Scratch,
) -> bool:
    """Fill scratch with the rows' columns from `left`, sorted as far as `merges` goes.

    Address 0 stands for a row of the largest values, found at `filler`: it fills up a block.
    """
    stride = 4 * scratch.shape[1]
    base = scratch.ctypes.data
    count = width // LANES
    here = np.empty(BLOCK_ROWS, dtype=np.int64)
    bad = 0
    for block in range(len(addresses) // BLOCK_ROWS):
        for row in range(BLOCK_ROWS):
            address = addresses[block * BLOCK_ROWS + row]
            here[row] = filler if address == 0 else address + 4 * left
        bad |= _sort_rows(
            here.ctypes.data,
            scales.ctypes.data + 8 * block * BLOCK_ROWS,
            base + block * BLOCK_ROWS * stride,
            stride,
            count,
        )
    for step in range(len(merges)):
        _merge_blocks(
            base + merges[step, 0] * BLOCK_ROWS * stride,
            base + merges[step, 1] * BLOCK_ROWS * stride,
            stride,
            count,
            merges[step, 2],
        )
    return bad == 0


@intrinsic
def _mix_rows(
    typing_context: Any,
    staged: Any,
    stride: Any,
    num_rows: Any,
    weights: Any,
    mixed: Any,
    mixed_stride: Any,
    count: Any,
) -> Any:
    """Write four weighted sums of staged rows, in float64, rounded once.

    weights: address of (4, num_rows) float64.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        staged, stride, num_rows, weights, mixed, mixed_stride, count = arguments
        emit = Emitter(builder)
        sums = [[cgutils.alloca_once(builder, V8F64) for _ in range(2)] for _ in range(MIXED_ROWS)]
        with cgutils.for_range(builder, count, intp=I64) as columns:
            at = builder.mul(columns.index, emit.integer(_VECTOR_BYTES))
            for row in sums:
                for half in row:
                    builder.store(emit.zeros(V8F64), half)
            with cgutils.for_range(builder, num_rows, intp=I64) as rows:
                source = builder.add(staged, builder.mul(rows.index, stride))
                values = emit.load(builder.add(source, at), V16F32)
                halves = [emit.widen(emit.part(values, start, HALF)) for start in (0, HALF)]
                for i, row in enumerate(sums):
                    place = builder.add(rows.index, builder.mul(num_rows, emit.integer(i)))
                    address = builder.add(weights, builder.mul(place, emit.integer(8)))
                    weight = emit.broadcast(emit.load(address, F64), HALF)
                    for half, value in zip(row, halves, strict=True):
                        total = emit.call("fma", [weight, value, builder.load(half)])
                        builder.store(total, half)
            for i, row in enumerate(sums):
                low, high = (builder.fptrunc(builder.load(half), V8F32) for half in row)
                place = builder.add(mixed, builder.mul(mixed_stride, emit.integer(i)))
                emit.store(emit.join(low, high), builder.add(place, at))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), codegen


@kernel
def mix_columns(
    addresses: Ints, scales: Floats, matrix: Floats, left: int, width: int, mixed: Scratch
) -> bool:
    """Write matrix @ rows for the columns from `left`: (m, n) times (n, d), m a multiple of 4."""
    num_rows = len(addresses)
    staged = np.empty((num_rows, BLOCK_COLUMNS), dtype=np.float32)
    largest = 0
    for row in range(num_rows):
        target = staged.ctypes.data + 4 * BLOCK_COLUMNS * row
        source = addresses[row] + 4 * left
        bits = stage(source, scales[row], target, width // LANES, source)
        largest = max(largest, bits)
    for first in range(0, len(matrix), MIXED_ROWS):
        _mix_rows(
            staged.ctypes.data,
            4 * BLOCK_COLUMNS,
            num_rows,
            matrix.ctypes.data + 8 * num_rows * first,
            mixed.ctypes.data + 4 * mixed.shape[1] * first,
            4 * mixed.shape[1],
            width // LANES,
        )
    return largest <= MAX_FINITE_BITS


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
            is_finite &= _sort_columns(places, plain, merges, 0, width, filler.ctypes.data, scratch)
        else:
            is_finite &= _sort_columns(
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
