"""A sorting network across rows, for every column at once.

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
from aggregators.kernels.simd import (
    F64,
    I64,
    LANES,
    V16F32,
    V16I32,
    Emitter,
    odd_even_merge_sort,
)

BLOCK_ROWS: Final = 8
"""Rows per sorted block: two blocks fit in the registers."""

BLOCK_COLUMNS: Final = 256  # of a thousand rows they fit in L2
LARGEST: Final = float(np.finfo(np.float32).max)

_BOTH: Final = 0
_LESSER: Final = 1
_GREATER: Final = 2
VECTOR_BYTES: Final = 4 * LANES
SORT: Final = odd_even_merge_sort(BLOCK_ROWS)
MERGE: Final = odd_even_merge_sort(2 * BLOCK_ROWS)[2 * len(SORT) :]

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
                at = builder.mul(loop.index, emit.integer(VECTOR_BYTES))
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
                _exchange(emit, values, SORT)
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
                at = builder.mul(loop.index, emit.integer(VECTOR_BYTES))
                places = [builder.add(row, at) for row in rows]
                values = [emit.load(place, V16F32) for place in places]
                _exchange(emit, values, MERGE)
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


@kernel
def sort_columns(
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
