"""Positions of the coordinates that are sent, as few bits each: Golomb-Rice codes, layer by layer.

Layers of a model differ in how many of their coordinates are sent, so each has a code of its own.
With c of a layer's m coordinates sent, the gap before each (the coordinates skipped since the one
before, or since the layer's start) is written as

    gap = quotient * 2^r + remainder,  r = floor(log2(x)) or 0,  x = floor(11 (m - c) / (16 c))

where 11/16 stands for ln 2. Both sides know m; c is written; r follows, so nothing is left to
choose. The bytes:

    counts      for each layer, c in as many bytes as m needs, little-endian
    size        4 bytes, little-endian: bytes of the quotients
    remainders  for each layer, the highest bit of every remainder, then the next of every, ...
    quotients   for every gap, quotient zeros and a one

Bits fill bytes from the highest bit on; the last byte of remainders and of quotients is filled
with zeros. One set of positions has one encoding, and whatever decodes is that encoding.

References: Golomb (1966), "Run-length encodings"; Rice (1979), JPL 79-22; Kiely (2004), "Selecting
the Golomb parameter in Rice coding", for the rule that gives r.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from protos.wire import MAX_DIM
from updates.codec import CodecError, MalformedUpdateError, NonCanonicalUpdateError
from updates.errors import CompressionError
from updates.sparse import Indices, check_increasing

Integers: TypeAlias = NDArray[np.int64]
Bits: TypeAlias = NDArray[np.uint8]

_LITTLE_UINT32: Final = np.dtype("<u4")
_COUNT_BYTES: Final = 4  # of the widest count, and of the size of the quotients
_MAX_QUOTIENT_BITS: Final = 4  # for each gap on average: 1 + 32/11, see `Layers.max_bytes`


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layers:
    """The layers of a model, as the code of its positions needs them.

    Attributes:
        sizes: (l,), elements of each layer, in order.
        starts: (l,), position of the first element of each.
        dim: d, elements of all.
    """

    sizes: Integers
    starts: Integers
    dim: int

    def max_bytes(self, num_values: int) -> int:
        """Give the most bytes that `encode_indices` writes for at most `num_values` positions."""
        # A layer's remainders take c r <= c log2(m / c) bits, which sum to at most k log2(d / k)
        # (log sum inequality). With x >= 1, 2^r > 11 (m - c) / (32 c), so quotients sum to less
        # than 32 c / 11; with x = 0 they sum to m - c < 16 c / 11. One bit more ends each.
        remainder_bits = num_values * math.log2(self.dim / num_values)
        bits = math.ceil(remainder_bits) + _MAX_QUOTIENT_BITS * num_values
        return int(_count_widths(self).sum()) + _COUNT_BYTES + bits // 8 + 2


def layers_of(sizes: tuple[int, ...], *, dim: int) -> Layers:
    """Prepare the layers of a model of `dim` elements.

    Raises:
        CompressionError: if a size is negative, or the sizes do not sum to `dim`.
    """
    if any(size < 0 for size in sizes) or sum(sizes) != dim or not 1 <= dim <= MAX_DIM:
        message = f"layer sizes {sizes!r:.200} must sum to dim={dim}, in 1..{MAX_DIM}"
        raise CompressionError(message)
    array = np.array(sizes, dtype=np.int64)
    return Layers(sizes=array, starts=np.cumsum(array) - array, dim=dim)


def encode_indices(indices: Indices, layers: Layers) -> bytes:
    """Write positions.

    Args:
        indices: (k,), int64, strictly increasing in 0..dim - 1; k may be 0.
        layers: of the model.

    Raises:
        CompressionError: if the indices are not in order or not in range.

    Guarantees:
        `decode_indices` gives the same positions. At most `layers.max_bytes(k)` bytes.

    Cost: O(k log(d / k) + l) time, O(k + l) memory.
    """
    check_increasing(indices, dim=layers.dim)
    ends = np.searchsorted(indices, layers.starts + layers.sizes)
    counts = np.diff(ends, prepend=0)
    shifts = _rice_parameters(layers.sizes, counts)
    # The position before the first of a layer is the one before the layer.
    gaps = np.diff(indices, prepend=-1) - 1
    firsts = (ends - counts)[counts > 0]
    gaps[firsts] = indices[firsts] - layers.starts[counts > 0]
    quotients = gaps >> np.repeat(shifts, counts)
    unary = np.zeros(len(gaps) + int(quotients.sum()), dtype=np.uint8)
    unary[np.cumsum(quotients + 1) - 1] = 1
    packed = np.packbits(unary)
    return b"".join(
        (
            _write_counts(layers, counts),
            len(packed).to_bytes(_COUNT_BYTES, "little"),
            np.packbits(_remainder_bits(gaps, counts, shifts)).tobytes(),
            packed.tobytes(),
        )
    )


def decode_indices(
    data: memoryview, layers: Layers, *, max_values: int
) -> tuple[Indices, memoryview]:
    """Read positions from the front of `data`.

    Args:
        data: what `encode_indices` wrote, and whatever follows.
        layers: of the model.
        max_values: most positions that are accepted.

    Returns:
        (k,), int64, strictly increasing in 0..dim - 1; and what follows in `data`.

    Raises:
        MalformedUpdateError: if `data` is too short, or a position is out of range or too many.
        NonCanonicalUpdateError: if bits that fill a byte are not zero.

    Guarantees:
        `encode_indices` gives the bytes that were read. Memory follows `max_values` and the number
        of layers, whatever `data` says.

    Cost: as `encode_indices`.
    """
    counts, data = _read_counts(data, layers)
    total = int(counts.sum())
    if total > max_values:
        message = f"{total} positions must be at most {max_values}"
        raise MalformedUpdateError(message)
    head, data = _take(data, _COUNT_BYTES)
    num_bytes = int.from_bytes(head, "little")
    shifts = _rice_parameters(layers.sizes, counts)
    packed_remainders, data = _take(data, -(-int((counts * shifts).sum()) // 8))
    if num_bytes > (_MAX_QUOTIENT_BITS * total + 7) // 8:
        message = f"quotients of {num_bytes} bytes are too many for {total} positions"
        raise MalformedUpdateError(message)
    packed_unary, data = _take(data, num_bytes)
    quotients = _read_quotients(packed_unary, total)
    # Also keeps what follows from wrapping around.
    if (quotients > np.repeat((layers.sizes - counts) >> shifts, counts)).any():
        raise _outside_layer()
    gaps = quotients << np.repeat(shifts, counts)
    _add_remainders(gaps, packed_remainders, counts, shifts)
    return _positions(gaps, counts, layers), data


def encode_coordinates(indices: Indices, dim: int) -> bytes:
    """Write the positions that a server announces: as the positions of a model of one layer.

    Raises:
        CompressionError: if there are none, or they are not strictly increasing in 0..dim - 1.
    """
    layers = layers_of((dim,), dim=dim)
    if len(indices) == 0:
        message = "indices of announced coordinates must not be empty"
        raise CompressionError(message)
    return encode_indices(indices, layers)


def max_coordinates_bytes(num_values: int, dim: int) -> int:
    """Give the most bytes that `encode_coordinates` writes for `num_values` positions.

    Args:
        num_values: k, 1 to `dim`.
        dim: d of the model.
    """
    layers = layers_of((dim,), dim=dim)
    counts = np.array([num_values])
    shift = int(_rice_parameters(layers.sizes, counts)[0])
    # Gaps sum to at most d - k, and their quotients to no more than the quotient of that.
    unary_bits = num_values + ((dim - num_values) >> shift)
    packed = -(-num_values * shift // 8) + -(-unary_bits // 8)
    return int(_count_widths(layers).sum()) + _COUNT_BYTES + packed


def decode_coordinates(data: bytes, dim: int) -> Indices:
    """Read announced positions.

    Returns:
        (k,), int64, strictly increasing in 0..dim - 1, k from 1; read-only.

    Raises:
        CompressionError: if `data` is not exactly what `encode_coordinates` writes.
    """
    layers = layers_of((dim,), dim=dim)
    try:
        # No position takes less than a bit.
        max_values = min(dim, 8 * len(data))
        indices, rest = decode_indices(memoryview(data), layers, max_values=max_values)
    except CodecError as error:
        message = f"announced coordinates: {error}"
        raise CompressionError(message) from error
    if len(rest) or not len(indices):
        message = f"announced coordinates: {len(indices)} positions and {len(rest)} bytes more"
        message += " must be some positions and nothing more"
        raise CompressionError(message)
    indices.flags.writeable = False
    return indices


def _rice_parameters(sizes: Integers, counts: Integers) -> Integers:
    """Give r of each layer."""
    mean = 11 * (sizes - counts) // np.maximum(16 * counts, 1)
    # Exact below 2^53: the exponent of a positive whole number is its number of bits.
    _, num_bits = np.frexp(mean.astype(np.float64))
    shifts: Integers = np.where(counts > 0, np.maximum(num_bits - 1, 0), 0).astype(np.int64)
    return shifts


def _count_widths(layers: Layers) -> Integers:
    """Give the bytes that the count of each layer takes."""
    thresholds = 256 ** np.arange(_COUNT_BYTES, dtype=np.int64)
    widths: Integers = (layers.sizes[:, None] >= thresholds).sum(axis=1)
    return widths


def _write_counts(layers: Layers, counts: Integers) -> bytes:
    in_bytes = counts.astype(_LITTLE_UINT32).view(np.uint8).reshape(-1, _COUNT_BYTES)
    return in_bytes[np.arange(_COUNT_BYTES) < _count_widths(layers)[:, None]].tobytes()


def _read_counts(data: memoryview, layers: Layers) -> tuple[Integers, memoryview]:
    widths = _count_widths(layers)
    head, rest = _take(data, int(widths.sum()))
    in_bytes = np.zeros((len(widths), _COUNT_BYTES), dtype=np.uint8)
    in_bytes[np.arange(_COUNT_BYTES) < widths[:, None]] = np.frombuffer(head, dtype=np.uint8)
    counts = in_bytes.view(_LITTLE_UINT32)[:, 0].astype(np.int64)
    if (counts > layers.sizes).any():
        layer = int((counts > layers.sizes).argmax())
        message = f"{counts[layer]} positions of layer {layer} must be at most its"
        message += f" {layers.sizes[layer]} elements"
        raise MalformedUpdateError(message)
    return counts, rest


def _remainder_bits(gaps: Integers, counts: Integers, shifts: Integers) -> Bits:
    bits = np.empty(int((counts * shifts).sum()), dtype=np.uint8)
    for of_layer, planes in _by_layer(gaps, bits, counts, shifts):
        # The narrowest type that holds the remainders: several times as quick as int64.
        remainders = of_layer.astype(_narrowest(len(planes)))
        for plane in planes[::-1]:
            np.copyto(plane, remainders & 1, casting="unsafe")
            remainders >>= 1
    return bits


def _add_remainders(gaps: Integers, packed: memoryview, counts: Integers, shifts: Integers) -> None:
    bits = _unpack(packed, int((counts * shifts).sum()))
    for of_layer, planes in _by_layer(gaps, bits, counts, shifts):
        remainders = np.zeros(len(of_layer), dtype=_narrowest(len(planes)))
        for plane in planes:
            remainders <<= 1
            remainders |= plane
        np.add(of_layer, remainders, out=of_layer)


def _by_layer(
    gaps: Integers, bits: Bits, counts: Integers, shifts: Integers
) -> Iterator[tuple[Integers, Bits]]:
    """Give views of each layer's (c,) gaps and of the (r, c) bits of their remainders."""
    gap, bit = 0, 0
    for count, shift in zip(counts.tolist(), shifts.tolist(), strict=True):
        if count and shift:
            planes = bits[bit : bit + count * shift].reshape(shift, count)
            yield gaps[gap : gap + count], planes
        gap += count
        bit += count * shift


def _narrowest(num_bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    if num_bits <= 8:
        return np.dtype(np.uint8)
    return np.dtype(np.uint16) if num_bits <= 16 else np.dtype(np.uint32)


def _read_quotients(packed: memoryview, total: int) -> Integers:
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8))
    ends = np.flatnonzero(bits.view(np.bool_))  # as truth values: quicker than bytes
    if len(ends) != total:
        message = f"{len(ends)} quotients must be one for each of {total} positions"
        raise MalformedUpdateError(message)
    used = (int(ends[-1]) + 8) // 8 if total else 0
    if len(packed) != used:
        message = f"quotients of {len(packed)} bytes must end with the last, in {used}"
        raise NonCanonicalUpdateError(message)
    return np.diff(ends, prepend=-1) - 1


def _positions(gaps: Integers, counts: Integers, layers: Layers) -> Indices:
    steps = np.cumsum(gaps + 1)
    ends = np.cumsum(counts)
    before = np.concatenate((np.zeros(1, dtype=np.int64), steps))[ends - counts]
    indices: Indices = steps + np.repeat(layers.starts - 1 - before, counts)
    is_used = counts > 0
    if (indices[ends[is_used] - 1] >= (layers.starts + layers.sizes)[is_used]).any():
        raise _outside_layer()
    return indices


def _outside_layer() -> MalformedUpdateError:
    message = "a position must be inside its layer"
    return MalformedUpdateError(message)


def _unpack(packed: memoryview, num_bits: int) -> Bits:
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8))
    if bits[num_bits:].any():
        message = "the bits that fill the last byte must be zero"
        raise NonCanonicalUpdateError(message)
    return bits[:num_bits]


def _take(data: memoryview, num_bytes: int) -> tuple[memoryview, memoryview]:
    if len(data) < num_bytes:
        message = f"{len(data)} bytes are left where {num_bytes} must follow"
        raise MalformedUpdateError(message)
    return data[:num_bytes], data[num_bytes:]
