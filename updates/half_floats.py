"""float32 to float16 and bfloat16 and back, with whole-array integer arithmetic.

numpy's own conversion takes ten times as long where values are subnormal halves, below 2^-14, as
the changes of a model often are.
"""

from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from updates.sparse import Values

Halves: TypeAlias = NDArray[np.uint16]

MAX_FLOAT16: Final = 65504.0
MAX_BFLOAT16: Final = float.fromhex("0x1.fep127")

_CHUNK: Final = 1 << 14  # values at a time: what lies between the steps stays in the L2 cache
_MAGNITUDE: Final = np.uint32(0x7FFFFFFF)
_SIGN: Final = np.uint32(0x8000)
_SMALLEST_NORMAL: Final = np.uint32(0x38800000)  # 2^-14 as float32
_HALF: Final = np.float32(0.5)
_HALF_BITS: Final = np.uint32(0x3F000000)
# Takes 112 from the exponent, whose bias is 127 and becomes 15, and adds just under half a step.
_REBIAS: Final = np.uint32((0xFFF - (112 << 23)) % 2**32)
_FLOAT16_VALUES: Final[Values] = (
    np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
)


def to_float16(values: Values) -> Halves:
    """Give the bits of the nearest float16 of each value, ties to even.

    Args:
        values: (k,), finite. What exceeds `MAX_FLOAT16` in magnitude becomes it.

    Cost: O(k) time, O(k) memory.
    """
    halves = np.empty(len(values), dtype=np.uint16)
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK]
        halves[start : start + _CHUNK] = _to_float16(np.clip(part, -MAX_FLOAT16, MAX_FLOAT16))
    return halves


def from_float16(halves: Halves) -> Values:
    """Give the value of each float16."""
    values: Values = _FLOAT16_VALUES.take(halves)
    return values


def to_bfloat16(values: Values) -> Halves:
    """Give the bits of the nearest bfloat16 of each value, ties to even; as `to_float16`."""
    halves = np.empty(len(values), dtype=np.uint16)
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK]
        bits = np.clip(part, -MAX_BFLOAT16, MAX_BFLOAT16).view(np.uint32)
        # Just under half a step, and the rest of it where the last bit that stays is odd.
        rounded = bits >> np.uint32(16)
        rounded &= np.uint32(1)
        rounded += bits
        rounded += np.uint32(0x7FFF)
        rounded >>= np.uint32(16)
        halves[start : start + _CHUNK] = rounded
    return halves


def from_bfloat16(halves: Halves) -> Values:
    """Give the value of each bfloat16."""
    bits = halves.astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)


def _to_float16(values: Values) -> NDArray[np.uint32]:
    bits = values.view(np.uint32)
    magnitudes = bits & _MAGNITUDE
    # Below 2^-14: the step of float32 at 1/2 is 2^-24, that of small halves, so the sum rounds.
    small = (magnitudes.view(np.float32) + _HALF).view(np.uint32)
    small -= _HALF_BITS
    # Wraps around below 2^-14, where it is not used.
    halves = magnitudes >> np.uint32(13)
    halves &= np.uint32(1)
    halves += magnitudes
    halves += _REBIAS
    halves >>= np.uint32(13)
    # All ones where the value is small. Selecting by bits is quicker than by numpy's masks.
    is_small = np.negative((magnitudes < _SMALLEST_NORMAL).astype(np.uint32))
    small ^= halves
    small &= is_small
    halves ^= small
    signs = bits >> np.uint32(16)
    signs &= _SIGN
    halves |= signs
    return halves
