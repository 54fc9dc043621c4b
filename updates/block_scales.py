"""Numbers as whole multiples of a scale for each block; see `updates.quantization`.

References: Alistarh et al. (2017), arXiv:1610.02132, for stochastic rounding by blocks.
"""

import hashlib
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from updates.codec import MalformedUpdateError, NonCanonicalUpdateError
from updates.sparse import Values

Quanta: TypeAlias = NDArray[np.int8]

BLOCK_VALUES: Final = 256
"""Numbers of a block; the last may have fewer."""

MIN_SCALE: Final = 2.0**-110
"""Scales are no smaller, so that none lacks bits; a block without a number so large is zeros."""

_CHUNK: Final = 1 << 15  # numbers at a time, whole blocks: what lies between the steps stays in L2


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Which multiples of a scale there are.

    Attributes:
        largest: Q; multiples are in -Q..Q.
        scale_mask: bits of a float32 that a scale may have, so that every multiple is a float32.
    """

    largest: int
    scale_mask: int


def num_blocks(num_values: int) -> int:
    """Give the number of blocks of so many numbers."""
    return -(-num_values // BLOCK_VALUES)


def quantize_blocks(
    values: Values, grid: Grid, *, seed: bytes, has_zero: bool
) -> tuple[Quanta, Values]:
    """Give the multiples (k,) and the scales of numbers.

    Args:
        values: (k,), finite.
        grid: of the multiples.
        seed: of the stochastic rounding.
        has_zero: whether a number may become zero. If not, none may be below `MIN_SCALE`.

    Cost: O(k) time and memory.
    """
    starts = np.arange(0, len(values), BLOCK_VALUES)
    scales = _scales_of(np.maximum.reduceat(np.abs(values), starts), grid)
    # x / inf is zero: what has no scale is written as zeros.
    divisors = np.where(scales > 0, scales, np.float32(np.inf))
    draws = _draws(len(values), seed)
    quanta = np.empty(len(values), dtype=np.int8)
    for start in range(0, len(values), _CHUNK):
        part = slice(start, start + _CHUNK)
        blocks = slice(start // BLOCK_VALUES, (start + _CHUNK) // BLOCK_VALUES)
        ratios = values[part] / _spread(divisors[blocks], len(values[part]))
        np.clip(ratios, -grid.largest, grid.largest, out=ratios)
        quanta[part] = _rounded(ratios, _uniform(draws[part]), has_zero=has_zero)
    return quanta, scales


def multiples(quanta: Quanta, scales: Values) -> Values:
    """Give the numbers; exact where scales and quanta are those of a grid."""
    values: Values = quanta.astype(np.float32)
    values *= _spread(scales, len(quanta))
    return values


def check_scales(scales: Values, grid: Grid) -> None:
    """Refuse scales that `quantize_blocks` does not give.

    Raises:
        MalformedUpdateError: if one is negative, or it or its multiples are not finite.
        NonCanonicalUpdateError: if one has too many bits, or is too small.
    """
    bits = scales.view(np.uint32)
    # As bits: non-negative floats are in the order of their bits, and infinity and NaN come last.
    largest = np.float32(np.finfo(np.float32).max / grid.largest).view(np.uint32)
    if (bits > largest).any():
        block = int((bits > largest).argmax())
        message = f"scale {scales[block]} of block {block} must be from 0 and its multiples finite"
        raise MalformedUpdateError(message)
    smallest = np.float32(MIN_SCALE).view(np.uint32)
    is_canonical = (bits & np.uint32(grid.scale_mask) == bits) & ((bits >= smallest) | (bits == 0))
    if not is_canonical.all():
        block = int(is_canonical.argmin())
        message = f"scale {scales[block]} of block {block} must be 0 or from {MIN_SCALE}, with few"
        message += " enough bits for exact multiples"
        raise NonCanonicalUpdateError(message)


def check_quanta(quanta: Quanta, scales: Values, grid: Grid) -> None:
    """Refuse multiples of which the largest in a block is not what `quantize_blocks` gives.

    Raises:
        NonCanonicalUpdateError: if it is not Q; or 0 where the scale is 0; or 1 to Q where it is
            `MIN_SCALE`.
    """
    starts = np.arange(0, len(quanta), BLOCK_VALUES)
    # Of int8, the magnitude of -128 wraps to -128, which are the bits of 128.
    found = np.maximum.reduceat(np.abs(quanta).view(np.uint8), starts)
    most = np.where(scales > 0, np.uint8(grid.largest), np.uint8(0))
    least = np.where(scales == np.float32(MIN_SCALE), np.uint8(1), most)
    is_canonical = (least <= found) & (found <= most)
    if not is_canonical.all():
        block = int(is_canonical.argmin())
        message = f"largest multiple {found[block]} of block {block} must be {most[block]}"
        raise NonCanonicalUpdateError(message)


def _scales_of(largest: Values, grid: Grid) -> Values:
    # Wider than float32, so that the largest multiple of a scale gives that scale, not one below.
    exact = largest.astype(np.float64) / grid.largest
    nearest = exact.astype(np.float32)
    below = np.where(nearest > exact, np.nextafter(nearest, np.float32(0)), nearest)
    scales: Values = (below.view(np.uint32) & np.uint32(grid.scale_mask)).view(np.float32)
    np.maximum(scales, np.float32(MIN_SCALE), out=scales)
    scales[largest < np.float32(MIN_SCALE)] = 0
    return scales


def _rounded(ratios: Values, u: Values, *, has_zero: bool) -> Values:
    """Round to one of the two whole numbers beside each ratio; without zero, to -1 or 1 for it."""
    # The sum is exact where a ratio is whole: 7 bits before the point and 17 behind it.
    whole: Values = np.floor(ratios + u)
    if not has_zero:
        beside = np.flatnonzero(np.abs(ratios) < 1)
        halves = np.floor((ratios[beside] + 1) / 2 + u[beside])
        whole[beside] = 2 * halves - 1
    return whole


def _uniform(draws: NDArray[np.uint16]) -> Values:
    """Give the middles of the drawn ones of 2^16 equal parts of (0, 1)."""
    uniform: Values = draws.astype(np.float32)
    uniform += np.float32(0.5)
    uniform *= np.float32(2**-16)
    return uniform


def _draws(count: int, seed: bytes) -> NDArray[np.uint16]:
    """Draw (count,) uniform numbers; the raw output of the generator, which numpy keeps stable."""
    generator = np.random.PCG64(int.from_bytes(hashlib.sha256(seed).digest(), "little"))
    raw: NDArray[np.uint64] = generator.random_raw((count + 3) // 4)
    draws: NDArray[np.uint16] = raw.astype("<u8", copy=False).view("<u2")[:count]
    return draws


def _spread(of_blocks: Values, count: int) -> Values:
    """Give each of `count` numbers what its block has."""
    return np.repeat(of_blocks, BLOCK_VALUES)[:count]
