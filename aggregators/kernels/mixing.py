"""Averages of rows, a block of columns at a time."""

from typing import Any, Final

import numpy as np
from numba.core import cgutils, types
from numpy.typing import NDArray

from aggregators.kernels.cell_products import MAX_FINITE_BITS, stage
from aggregators.kernels.compiler import intrinsic, kernel
from aggregators.kernels.simd import (
    F64,
    HALF,
    I64,
    LANES,
    V8F32,
    V8F64,
    V16F32,
    Emitter,
)
from aggregators.kernels.sorting_network import (
    BLOCK_COLUMNS,
    VECTOR_BYTES,
)

MIXED_ROWS: Final = 4
"""Mixed rows are computed four at a time."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Scratch = NDArray[np.float32]


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
            at = builder.mul(columns.index, emit.integer(VECTOR_BYTES))
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
