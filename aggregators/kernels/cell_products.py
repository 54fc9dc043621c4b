"""Inner products of rows: the symmetric product of a tall matrix with itself.

Columns are cut into cells of 4096, counted from column 0. A cell's products are sums of float32
products over 1024 columns at a time, sixteen sums side by side, added up in float64; few rows,
whose products the memory cannot feed fast enough anyway, are multiplied in float64. Cells are
added in the order of a binary tree over their numbers. So a product depends on two rows alone:
not on the other rows, on how many threads or machines share the cells, or on the blocks they take.
"""

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numpy.typing import NDArray

from aggregators.kernels.compiler import intrinsic, kernel
from aggregators.kernels.simd import (
    F32,
    F64,
    HALF,
    I64,
    LANES,
    V4F64,
    V8F64,
    V16F32,
    V16I32,
    Emitter,
)

CELL_COLUMNS: Final = 4096
CACHE_LINE: Final = 64
TILE_ROWS: Final = 4
"""Rows are multiplied four by four: sixteen sums fit in the registers."""

_STAGE: Final = 1024  # columns summed in float32 before they are added in float64
STAGE_STRIDE: Final = _STAGE + LANES  # staged rows must not all lie in the same cache sets
_BLOCK_ROWS: Final = 96  # rows multiplied with each other while they and their sums are near

# Squares of larger or smaller values would leave the range of float32: such rows are brought near
# one, by a power of two.
_LARGEST_BITS: Final = (127 + 40) << 23
_SMALLEST_BITS: Final = (127 - 40) << 23
MAX_FINITE_BITS: Final = 0x7F7FFFFF
"""Bits of the largest finite float32; those of infinity and NaN are larger."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@intrinsic
def stage(typing_context: Any, source: Any, scale: Any, target: Any, count: Any, ahead: Any) -> Any:
    """Copy vectors of a row, multiplied by its scale unless that is 1; return the largest bits.

    ahead: address of what will be copied next.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, scale, target, count, ahead = arguments
        emit = Emitter(builder)
        largest = cgutils.alloca_once_value(builder, emit.zeros(V16I32))

        def loop_over_columns(*, scaled: bool) -> None:
            with cgutils.for_range(builder, count, intp=I64) as loop:
                at = builder.mul(loop.index, emit.integer(4 * LANES))
                emit.prefetch(builder.add(ahead, at))
                values = emit.load(builder.add(source, at), V16F32)
                if scaled:
                    values = emit.scaled(values, scale)
                builder.store(emit.largest_bits(builder.load(largest), values), largest)
                emit.store(values, builder.add(target, at))

        is_plain = builder.fcmp_ordered("==", scale, ir.Constant(F64, 1.0))
        with builder.if_else(is_plain) as (then, otherwise):
            with then:
                loop_over_columns(scaled=False)
            with otherwise:
                loop_over_columns(scaled=True)
        return emit.largest_lane(builder.load(largest))

    return types.int64(types.int64, types.float64, *[types.int64] * 3), codegen


def _emit_tile(kind: Any) -> Any:
    """Multiply four rows by four: out[i, j] += factors_i factors_j <a_i, b_j>."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, second, stride, count, first_factors, second_factors, out, out_stride = arguments
        emit = Emitter(builder)
        size = 4 if kind.element == F32 else 8
        sums = [
            [cgutils.alloca_once_value(builder, emit.zeros(kind)) for _ in range(TILE_ROWS)]
            for _ in range(TILE_ROWS)
        ]
        steps = [builder.mul(stride, emit.integer(row)) for row in range(TILE_ROWS)]
        with cgutils.for_range(builder, count, intp=I64) as loop:
            at = builder.mul(loop.index, emit.integer(size * kind.count))
            lefts = [emit.load(builder.add(builder.add(first, step), at), kind) for step in steps]
            for j, step in enumerate(steps):
                right = emit.load(builder.add(builder.add(second, step), at), kind)
                for i, left in enumerate(lefts):
                    total = emit.call("fma", [left, right, builder.load(sums[i][j])])
                    builder.store(total, sums[i][j])
        columns = emit.load(second_factors, V4F64)
        for i in range(TILE_ROWS):
            totals = [builder.load(total) for total in sums[i]]
            products = emit.lane_sums(totals)
            if kind.element == F32:
                products = emit.widen(products)
            row = emit.broadcast(emit.load(emit.item(first_factors, i), F64), TILE_ROWS)
            products = builder.fmul(builder.fmul(products, row), columns)
            place = builder.add(out, builder.mul(out_stride, emit.integer(i)))
            emit.store(builder.fadd(emit.load(place, V4F64), products), place)
        return context.get_dummy_value()

    return codegen


@intrinsic
def _tile32(
    typing_context: Any,
    first: Any,
    second: Any,
    stride: Any,
    count: Any,
    first_factors: Any,
    second_factors: Any,
    out: Any,
    out_stride: Any,
) -> Any:
    """Multiply tiles of float32 rows."""
    return types.void(*[types.int64] * 8), _emit_tile(V16F32)


@intrinsic
def _tile64(
    typing_context: Any,
    first: Any,
    second: Any,
    stride: Any,
    count: Any,
    first_factors: Any,
    second_factors: Any,
    out: Any,
    out_stride: Any,
) -> Any:
    """Multiply tiles of float64 rows."""
    return types.void(*[types.int64] * 8), _emit_tile(V8F64)


@kernel
def _stage_rows(
    addresses: Ints,
    scales: Floats,
    left: int,
    width: int,
    staged: NDArray[np.float32],
    factors: Floats,
) -> bool:
    """Copy some columns of every row; bring rows of extreme values near one."""
    is_finite = True
    for row in range(len(addresses)):
        target = staged.ctypes.data + 4 * STAGE_STRIDE * row
        ahead = addresses[min(row + 1, len(addresses) - 1)] + 4 * left
        bits = stage(addresses[row] + 4 * left, scales[row], target, width // LANES, ahead)
        is_finite &= bits <= MAX_FINITE_BITS
        factors[row] = 1.0
        if bits > _LARGEST_BITS or 0 < bits < _SMALLEST_BITS:
            exponent = max(bits >> 23, 1) - 127
            for column in range(width):
                value = np.float64(staged[row, column]) * 2.0**-exponent
                staged[row, column] = np.float32(value)
            factors[row] = 2.0**exponent
    return is_finite


@kernel
def _multiply_stage(
    width: int,
    first_row: int,
    is_wide: bool,
    staged: NDArray[np.float32],
    widened: Floats,
    factors: Floats,
    out: Floats,
) -> None:
    """Add the products of staged columns to `out`: rows from `first_row` with rows up to them."""
    num_padded = len(factors)
    for row_block in range(first_row // TILE_ROWS * TILE_ROWS, num_padded, _BLOCK_ROWS):
        row_stop = min(row_block + _BLOCK_ROWS, num_padded)
        for column_block in range(0, row_stop, _BLOCK_ROWS):
            for i in range(row_block, row_stop, TILE_ROWS):
                column_stop = min(column_block + _BLOCK_ROWS, i + TILE_ROWS)
                for j in range(column_block, column_stop, TILE_ROWS):
                    at = out.ctypes.data + 8 * (i * num_padded + j)
                    row_factors = factors.ctypes.data + 8 * i
                    column_factors = factors.ctypes.data + 8 * j
                    if is_wide:
                        _tile64(
                            widened.ctypes.data + 8 * STAGE_STRIDE * i,
                            widened.ctypes.data + 8 * STAGE_STRIDE * j,
                            8 * STAGE_STRIDE,
                            width // HALF,
                            row_factors,
                            column_factors,
                            at,
                            8 * num_padded,
                        )
                    else:
                        _tile32(
                            staged.ctypes.data + 4 * STAGE_STRIDE * i,
                            staged.ctypes.data + 4 * STAGE_STRIDE * j,
                            4 * STAGE_STRIDE,
                            width // LANES,
                            row_factors,
                            column_factors,
                            at,
                            8 * num_padded,
                        )


@kernel
def _fold(levels: Floats, cell: int, depth: int) -> int:
    """Add what the cell completes: an odd one a pair, which may complete a pair of pairs."""
    while cell % 2 == 1 and depth > 1:
        depth -= 1
        levels[depth - 1] += levels[depth]
        cell //= 2
    return depth


@kernel
def _fold_all(levels: Floats, depth: int) -> None:
    """Add what is left when the cells have run out, the latest first."""
    while depth > 1:
        depth -= 1
        levels[depth - 1] += levels[depth]


@kernel
def gram_of_cells(
    addresses: Ints,
    scales: Floats,
    dim: int,
    first_cell: int,
    last_cell: int,
    first_row: int,
    is_wide: bool,
    staged: NDArray[np.float32],
    widened: Floats,
    levels: Floats,
) -> bool:
    """Write the products of cells `first_cell` to `last_cell` - 1 to `levels[0]`.

    Args:
        addresses: (n,), of rows of float32.
        scales: (n,): rows are multiplied and rounded to float32 first, unless it is 1.
        dim: columns; a multiple of 16.
        first_cell: a multiple of the smallest power of two that is at least the number of cells.
        last_cell: one past the last.
        first_row: products of earlier rows with each other are left out.
        is_wide: multiply in float64.
        staged: (m, `STAGE_STRIDE`), zeros below row n, the first value at a multiple of 64 bytes.
        widened: the same; (0, `STAGE_STRIDE`) unless `is_wide`.
        levels: (l, m, m), with m the number of rows rounded up to a multiple of 4, and l at
            least 1 + log2 of the number of cells. Below the diagonal the products; above it
            whatever tiles spill.

    Returns:
        Whether every value is finite.
    """
    num_rows = len(addresses)
    num_padded = levels.shape[1]
    factors = np.ones(num_padded)
    is_finite = True
    depth = 0
    for cell in range(first_cell, last_cell):
        levels[depth, :, :] = 0.0
        for left in range(cell * CELL_COLUMNS, min(dim, (cell + 1) * CELL_COLUMNS), _STAGE):
            width = min(_STAGE, dim - left)
            is_finite &= _stage_rows(addresses, scales, left, width, staged, factors)
            if is_wide:
                for row in range(num_rows):
                    for column in range(width):
                        widened[row, column] = np.float64(staged[row, column])
            _multiply_stage(width, first_row, is_wide, staged, widened, factors, levels[depth])
        depth = _fold(levels, cell, depth + 1)
    _fold_all(levels, depth)
    return is_finite


@kernel
def pack(products: Floats, num_rows: int) -> Floats:
    """Copy the products on and below the diagonal, row after row: half of the memory."""
    packed = np.empty(num_rows * (num_rows + 1) // 2)
    start = 0
    for row in range(num_rows):
        packed[start : start + row + 1] = products[row, : row + 1]
        start += row + 1
    return packed


@intrinsic
def _square_sum(typing_context: Any, row: Any, count: Any, ahead: Any) -> Any:
    """Add up the squares of vectors of a float32 row, in float64; `ahead` is read next."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, count, ahead = arguments
        emit = Emitter(builder)

        def squares(at: Any) -> Any:
            emit.prefetch(builder.add(ahead, at))
            return emit.squares(emit.widen(emit.load(builder.add(row, at), V16F32)))

        return emit.sum_over_columns(count, squares)

    return types.float64(types.int64, types.int64, types.int64), codegen


@intrinsic
def _squared_distance(typing_context: Any, first: Any, second: Any, count: Any) -> Any:
    """Add up the squared differences of vectors of two float32 rows, in float64."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, second, count = arguments
        emit = Emitter(builder)

        def squares(at: Any) -> Any:
            left, right = (
                emit.widen(emit.load(builder.add(row, at), V16F32)) for row in (first, second)
            )
            return emit.squares(builder.fsub(left, right))

        return emit.sum_over_columns(count, squares)

    return types.float64(types.int64, types.int64, types.int64), codegen


@kernel
def squares_of_cells(
    addresses: Ints, scales: Floats, dim: int, first_cell: int, last_cell: int, levels: Floats
) -> None:
    """Write every row's sum of squares to `levels[0]`; see `gram_of_cells`. `levels`: (l, n)."""
    staged = np.empty(CELL_COLUMNS, dtype=np.float32)
    depth = 0
    for cell in range(first_cell, last_cell):
        left = cell * CELL_COLUMNS
        count = min(CELL_COLUMNS, dim - left) // LANES
        for row in range(len(addresses)):
            address = addresses[row] + 4 * left
            if scales[row] != 1.0:
                stage(address, scales[row], staged.ctypes.data, count, address)
                address = staged.ctypes.data
            ahead = addresses[min(row + 1, len(addresses) - 1)] + 4 * left
            levels[depth, row] = _square_sum(address, count, ahead)
        depth = _fold(levels, cell, depth + 1)
    _fold_all(levels, depth)


@kernel
def distances_of_cells(
    addresses: Ints,
    scales: Floats,
    pairs: NDArray[np.int64],
    dim: int,
    first_cell: int,
    last_cell: int,
    levels: Floats,
) -> None:
    """Write the squared distances of pairs of rows to `levels[0]`; `levels`: (l, pairs)."""
    num_rows = len(addresses)
    staged = np.empty((num_rows, CELL_COLUMNS + LANES), dtype=np.float32)
    stride = 4 * (CELL_COLUMNS + LANES)
    depth = 0
    for cell in range(first_cell, last_cell):
        left = cell * CELL_COLUMNS
        count = min(CELL_COLUMNS, dim - left) // LANES
        for row in range(num_rows):
            target = staged.ctypes.data + stride * row
            source = addresses[row] + 4 * left
            stage(source, scales[row], target, count, source)
        for pair in range(len(pairs)):
            levels[depth, pair] = _squared_distance(
                staged.ctypes.data + stride * pairs[pair, 0],
                staged.ctypes.data + stride * pairs[pair, 1],
                count,
            )
        depth = _fold(levels, cell, depth + 1)
    _fold_all(levels, depth)
