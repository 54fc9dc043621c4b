"""Numbers in fewer bits: half floats, brain floats, and multiples of one scale for each block.

A block is `BLOCK_VALUES` numbers that follow each other. If its largest magnitude is a, its scale
is s = a / Q, truncated to as many significant bits as make every multiple q s, |q| <= Q, a float32
(Q = 127: 17 bits, Q = 7: 21). A number x is written as q = floor(x / s + u), u uniform in (0, 1):
stochastic rounding. What exceeds Q s, by the truncation and by less than 2^-16 of itself, is
written as Q.

Where numbers are those of chosen coordinates, none may become zero: its coordinate would be sent
for nothing, and one update would have several encodings. There, x below s is written as s or -s,
with the probabilities that make the mean x.

What is decoded is written as the same bytes again, with every seed: multiples of s are exact, and
the largest magnitude of a block is Q s, whose scale is s. Zero has one form: there is no -0.

The scales come first, then the numbers, little-endian; of numbers of several bytes, first the
lowest byte of each, then the next of each, and so on, which a general compressor makes more of.
"""

from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from updates.block_scales import (
    MIN_SCALE,
    Grid,
    check_quanta,
    check_scales,
    multiples,
    num_blocks,
    quantize_blocks,
)
from updates.codec import MalformedUpdateError, NonCanonicalUpdateError, NonFiniteUpdateError
from updates.compression_plan import ValueType
from updates.half_floats import from_bfloat16, from_float16, to_bfloat16, to_float16
from updates.sparse import Values

Words: TypeAlias = NDArray[np.unsignedinteger[Any]]

_GRIDS: Final = {
    ValueType.INT8: Grid(largest=127, scale_mask=0xFFFFFF80),
    ValueType.INT4: Grid(largest=7, scale_mask=0xFFFFFFF8),
}
_WORDS: Final[dict[ValueType, np.dtype[np.unsignedinteger[Any]]]] = {
    ValueType.FLOAT32: np.dtype(np.uint32),
    ValueType.FLOAT16: np.dtype(np.uint16),
    ValueType.BFLOAT16: np.dtype(np.uint16),
    ValueType.INT8: np.dtype(np.uint8),
    ValueType.INT4: np.dtype(np.uint8),
}
_MINUS_ZERO: Final = {
    ValueType.FLOAT32: 0x80000000,
    ValueType.FLOAT16: 0x8000,
    ValueType.BFLOAT16: 0x8000,
}
# The smallest magnitudes that are not zero when written; half a step rounds to even, to zero.
_SMALLEST: Final = {
    ValueType.FLOAT32: np.float32(2**-149),
    ValueType.FLOAT16: np.nextafter(np.float32(2**-25), np.float32(1)),
    ValueType.BFLOAT16: np.nextafter(np.float32(2**-134), np.float32(1)),
    ValueType.INT8: np.float32(MIN_SCALE),
    ValueType.INT4: np.float32(MIN_SCALE),
}
_SCALE: Final[np.dtype[np.unsignedinteger[Any]]] = np.dtype(np.uint32)


def num_bytes(num_values: int, value_type: ValueType) -> int:
    """Give the bytes that so many numbers take."""
    scale_bytes = _SCALE.itemsize * num_blocks(num_values) if value_type in _GRIDS else 0
    if value_type is ValueType.INT4:
        return scale_bytes + (num_values + 1) // 2
    return scale_bytes + _WORDS[value_type].itemsize * num_values


def can_be_nonzero(values: Values, value_type: ValueType) -> NDArray[np.bool_]:
    """Tell which numbers `quantize` can write otherwise than as zero."""
    is_large: NDArray[np.bool_] = np.abs(values) >= _SMALLEST[value_type]
    return is_large


def quantize(values: Values, *, value_type: ValueType, seed: bytes, has_zero: bool = True) -> bytes:
    """Write numbers in a type.

    Args:
        values: (k,), float32, finite. Not modified.
        value_type: FLOAT16 and BFLOAT16 round to the nearest, ties to even; what exceeds the
            largest finite number of the type becomes that number.
        seed: of the stochastic rounding; any bytes. Unused by types of floats.
        has_zero: whether a number may become zero; if not, all of `values` must be numbers that
            `can_be_nonzero`.

    Returns:
        `num_bytes(k, value_type)` bytes.

    Guarantees:
        The same arguments give the same bytes. Quantizing what is read, with any seed, gives the
        same bytes. With INT8 and INT4 the mean over seeds is the number itself up to 2^-15 of its
        block's largest magnitude, no magnitude grows beyond that largest one, and errors are below
        one scale, or below two without zero. Blocks without a number from
        `block_scales.MIN_SCALE` become zeros.

    Cost: O(k) time and memory.
    """
    if value_type in _GRIDS:
        quanta, scales = quantize_blocks(values, _GRIDS[value_type], seed=seed, has_zero=has_zero)
        words: Words = quanta.view(np.uint8)
        packed = _pack_nibbles(words) if value_type is ValueType.INT4 else words
        return _planes(scales.view(_SCALE)) + packed.tobytes()
    words = _float_words(values, value_type)
    words[words == _MINUS_ZERO[value_type]] = 0
    return _planes(words)


def dequantize(
    data: memoryview, *, num_values: int, value_type: ValueType, has_zero: bool = True
) -> Values:
    """Read numbers.

    Args:
        data: what `quantize` wrote.
        num_values: k.
        value_type: how they are written.
        has_zero: whether a number may be zero.

    Returns:
        (k,), float32, finite, without -0.

    Raises:
        MalformedUpdateError: if `data` has another length, or a scale is negative or too large.
        NonFiniteUpdateError: if a number is NaN or infinite.
        NonCanonicalUpdateError: if `quantize` writes the numbers otherwise.

    Guarantees:
        Quantizing what is read, with any seed, gives `data`.

    Cost: O(k) time and memory.
    """
    wanted = num_bytes(num_values, value_type)
    if len(data) != wanted:
        message = f"numbers of {len(data)} bytes must have {wanted}, for {num_values} of"
        message += f" {value_type.value}"
        raise MalformedUpdateError(message)
    if value_type in _GRIDS:
        values = _read_blocks(data, num_values, value_type)
    else:
        values = _checked_floats(_from_planes(data, _WORDS[value_type]), value_type)
    if not has_zero and not values.all():
        message = f"number {int((values == 0).argmax())} is sent and must not be zero"
        raise NonCanonicalUpdateError(message)
    return values


def _read_blocks(data: memoryview, num_values: int, value_type: ValueType) -> Values:
    grid = _GRIDS[value_type]
    scale_bytes = _SCALE.itemsize * num_blocks(num_values)
    scales = _from_planes(data[:scale_bytes], _SCALE).view(np.float32)
    check_scales(scales, grid)
    words = np.frombuffer(data[scale_bytes:], dtype=np.uint8)
    if value_type is ValueType.INT4:
        words = _unpack_nibbles(words, num_values)
    quanta = words.view(np.int8)
    check_quanta(quanta, scales, grid)
    return multiples(quanta, scales)


def _float_words(values: Values, value_type: ValueType) -> Words:
    if value_type is ValueType.FLOAT32:
        return values.view(np.uint32).copy()
    return to_float16(values) if value_type is ValueType.FLOAT16 else to_bfloat16(values)


def _checked_floats(words: Words, value_type: ValueType) -> Values:
    if value_type is ValueType.FLOAT32:
        values: Values = words.view(np.float32)
    else:
        halves = words.astype(np.uint16, copy=False)
        is_float16 = value_type is ValueType.FLOAT16
        values = from_float16(halves) if is_float16 else from_bfloat16(halves)
    is_finite = np.isfinite(values)
    if not is_finite.all():
        message = f"number {int(is_finite.argmin())} must be finite"
        raise NonFiniteUpdateError(message)
    is_minus_zero = words == _MINUS_ZERO[value_type]
    if is_minus_zero.any():
        message = f"number {int(is_minus_zero.argmax())} must be 0 where it is -0"
        raise NonCanonicalUpdateError(message)
    return values


def _unpack_nibbles(packed: NDArray[np.uint8], num_values: int) -> NDArray[np.uint8]:
    words = np.empty(2 * len(packed), dtype=np.uint8)
    np.bitwise_and(packed, 15, out=words[::2])
    np.right_shift(packed, 4, out=words[1::2])
    if words[num_values:].any():
        message = "the half of a byte that no number uses must be zero"
        raise NonCanonicalUpdateError(message)
    # Two's complement of 4 bits to that of 8: modulo 256.
    words ^= 8
    words -= 8
    return words[:num_values]


def _pack_nibbles(words: Words) -> Words:
    packed: Words = words[::2] & np.uint8(15)
    packed[: len(words) // 2] |= words[1::2] << np.uint8(4)
    return packed


def _planes(words: Words) -> bytes:
    planes = np.empty((words.dtype.itemsize, len(words)), dtype=np.uint8)
    for number, plane in enumerate(planes):
        np.copyto(plane, words >> (8 * number), casting="unsafe")
    return planes.tobytes()


def _from_planes(data: memoryview, dtype: np.dtype[np.unsignedinteger[Any]]) -> Words:
    planes = np.frombuffer(data, dtype=np.uint8).reshape(dtype.itemsize, -1)
    words: Words = planes[-1].astype(dtype)
    for plane in planes[-2::-1]:
        words <<= 8
        words |= plane
    return words
