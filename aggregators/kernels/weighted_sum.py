"""Weighted sums of rows, accurate to a rounding of float32 whatever cancels.

A first pass adds in float64 and keeps the sum of magnitudes beside the sum. It shows which sums
lost too many digits to cancellation; those few are added again with an error-free transformation
(Knuth's TwoSum; Ogita, Rump and Oishi 2005, "Accurate sum and dot product", Algorithm 4.3).
"""

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numpy.typing import NDArray

from aggregators.kernels.compiler import intrinsic, kernel
from aggregators.kernels.simd import F64, HALF, LANES, V8F32, V8F64, Emitter

GROUP_ROWS: Final = 4
"""Rows come in whole groups; rows of weight 0 fill up the last one."""

MANY_ROWS: Final = 12  # rows added while a vector of sums stays in its register
BLOCK_COLUMNS: Final = 2048  # their sums and magnitudes: 32 KiB, they stay in L1

_APART: Final = 256  # float64

# |error| <= n 2**-53 magnitude, so a sum above magnitude * n * DOUBTFUL is exact to 2**-27.
DOUBTFUL: Final = 2.0**-26


def _adder(num_rows: int, *, with_scales: bool) -> Any:
    """Make the instruction that adds some rows, weighted, to vectors of sums and of magnitudes.

    Its arguments: the address of the rows' addresses at this block, followed by those of the rows
    to be read next; the addresses of as many weights and scales, float64; the addresses of sums
    and magnitudes, float64; the number of vectors of 16. With scales a row is multiplied by its
    scale and rounded to float32 first.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        addresses, weights, scales, sums, sizes, count = arguments
        emit = Emitter(builder)
        rows = [emit.load(emit.item(addresses, row), ir.IntType(64)) for row in range(num_rows)]
        spread = [
            emit.broadcast(emit.load(emit.item(weights, row), F64), HALF) for row in range(num_rows)
        ]
        factors = [emit.load(emit.item(scales, row), F64) for row in range(num_rows)]
        nexts = [
            emit.load(emit.item(addresses, num_rows + row), ir.IntType(64))
            for row in range(MANY_ROWS)
        ]
        with cgutils.for_range(builder, count, intp=ir.IntType(64)) as loop:
            narrow = builder.mul(loop.index, emit.integer(4 * LANES))
            for row in range(MANY_ROWS):
                emit.prefetch(builder.add(nexts[row], narrow))
            for half in range(LANES // HALF):
                at = builder.add(narrow, emit.integer(4 * HALF * half))
                wide = builder.mul(at, emit.integer(2))
                sum_at, size_at = builder.add(sums, wide), builder.add(sizes, wide)
                total, size = emit.load(sum_at, V8F64), emit.load(size_at, V8F64)
                for row in range(num_rows):
                    values = emit.load(builder.add(rows[row], at), V8F32)
                    if with_scales:
                        values = emit.scaled(values, factors[row])
                    values = emit.widen(values)
                    total = emit.call("fma", [values, spread[row], total])
                    size = emit.call("fma", [emit.call("fabs", [values]), spread[row], size])
                emit.store(total, sum_at)
                emit.store(size, size_at)
        return context.get_dummy_value()

    def adder(
        typing_context: Any,
        addresses: Any,
        weights: Any,
        scales: Any,
        sums: Any,
        sizes: Any,
        count: Any,
    ) -> Any:
        return types.void(*[types.int64] * 6), codegen

    return intrinsic(adder)


_add_many = _adder(MANY_ROWS, with_scales=False)
_add_many_scaled = _adder(MANY_ROWS, with_scales=True)
_add_group = _adder(GROUP_ROWS, with_scales=False)
_add_group_scaled = _adder(GROUP_ROWS, with_scales=True)


@intrinsic
def read_float(typing_context: Any, address: Any) -> Any:
    """Read the float32 at an address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return Emitter(builder).load(arguments[0], ir.FloatType())

    return types.float32(types.int64), codegen


@kernel
def _refined(
    addresses: NDArray[np.int64],
    weights: NDArray[np.float64],
    scales: NDArray[np.float64],
    column: int,
) -> float:
    """Sum one column with the error of every addition carried along."""
    total = 0.0
    rest = 0.0
    for row in range(len(addresses)):
        value = read_float(addresses[row] + 4 * column)
        if scales[row] != 1.0:
            value = np.float32(np.float64(value) * scales[row])
        term = np.float64(value) * weights[row]
        new = total + term
        part = new - total
        rest += (total - (new - part)) + (term - part)
        total = new
    return total + rest


@kernel
def _add_rows(
    here: NDArray[np.int64],
    weights: NDArray[np.float64],
    scales: NDArray[np.float64],
    is_scaled: bool,
    count: int,
    sums: NDArray[np.float64],
    sizes: NDArray[np.float64],
) -> None:
    """Add every row, weighted, to a block's sums and magnitudes; `here`: the rows at the block."""
    row = 0
    while row < len(weights):
        at = here.ctypes.data + 8 * row
        votes = weights.ctypes.data + 8 * row
        factors = scales.ctypes.data + 8 * row
        is_group = row + MANY_ROWS > len(weights)
        if is_group and is_scaled:
            _add_group_scaled(at, votes, factors, sums.ctypes.data, sizes.ctypes.data, count)
        elif is_group:
            _add_group(at, votes, factors, sums.ctypes.data, sizes.ctypes.data, count)
        elif is_scaled:
            _add_many_scaled(at, votes, factors, sums.ctypes.data, sizes.ctypes.data, count)
        else:
            _add_many(at, votes, factors, sums.ctypes.data, sizes.ctypes.data, count)
        row += GROUP_ROWS if is_group else MANY_ROWS


@kernel
def _write_part(sums: NDArray[np.float64], total: float, out: NDArray[np.float32]) -> int:
    """Write sums divided by `total`; count those that are not finite."""
    num_bad = 0
    for column in range(len(out)):
        value = sums[column]
        num_bad += not abs(value) < np.inf
        # Every zero is positive: the sign of one would tell of the order of the rows.
        out[column] = np.float32(value / total) + np.float32(0.0)
    return num_bad


@kernel
def weighted_sum(
    addresses: NDArray[np.int64],
    weights: NDArray[np.float64],
    scales: NDArray[np.float64],
    total: float,
    start: int,
    stop: int,
    out: NDArray[np.float32],
) -> bool:
    """Write sum_i weights_i x_i / total for the columns from `start` up to `stop`.

    Args:
        addresses: (n,), of rows of float32; n a multiple of `GROUP_ROWS`, rows of weight 0 fill up.
        weights: (n,), not negative.
        scales: (n,): rows are multiplied and rounded to float32 first, unless it is 1.
        total: divisor.
        start: first column.
        stop: last column + 1; `stop - start` is a multiple of 16.
        out: (d,).

    Returns:
        Whether every sum is finite.
    """
    num_rows = len(addresses)
    is_scaled = False
    for row in range(num_rows):
        is_scaled |= scales[row] != 1.0
    doubtful = num_rows * DOUBTFUL
    # Half a page apart: a load must not seem to wait for a store to the same place of a page.
    both = np.empty(2 * BLOCK_COLUMNS + _APART)
    sums = both[:BLOCK_COLUMNS]
    sizes = both[BLOCK_COLUMNS + _APART :]
    here = np.empty(num_rows + MANY_ROWS, dtype=np.int64)
    num_bad = 0
    for left in range(start, stop, BLOCK_COLUMNS):
        width = min(BLOCK_COLUMNS, stop - left)
        sums[:] = 0.0
        sizes[:] = 0.0
        for row in range(num_rows):
            here[row] = addresses[row] + 4 * left
        for row in range(MANY_ROWS):  # what is read after this block
            here[num_rows + row] = addresses[row % num_rows] + 4 * (left + BLOCK_COLUMNS)
        _add_rows(here, weights, scales, is_scaled, width // LANES, sums, sizes)
        # Counted before anything is done about them: loops without branches use whole vectors.
        num_doubtful = 0
        for column in range(width):
            num_doubtful += not abs(sums[column]) >= sizes[column] * doubtful
        if num_doubtful > 0:
            for column in range(width):
                if not abs(sums[column]) >= sizes[column] * doubtful:
                    sums[column] = _refined(addresses, weights, scales, left + column)
        num_bad += _write_part(sums, total, out[left : left + width])
    return num_bad == 0
