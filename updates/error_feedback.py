"""What a device did not send, kept for its next update.

With p the update plus what was kept, s the compressed p, and c the factor that clipping scaled s
by, the device keeps p - expand(c s as the server decodes it) / c. So what selection, rounding and
quantization left out is sent later, while what clipping cut off is dropped: kept, it would grow
without bound. What is kept becomes the device's only once the server has taken the update.

As bytes, little-endian:

    offset     size  field
    0          4     magic, b"FAR1"
    4          4     zero
    8          8     dimension d, unsigned
    16         8     round, unsigned
    24         32    owner: whose residual this is, as the caller names it
    56         4*d   d float32 values, all finite
    56 + 4*d   8     XXH3-64 of all that

References: Seide et al. (2014), "1-Bit Stochastic Gradient Descent"; Stich, Cordonnier, Jaggi
    (2018), arXiv:1809.07599; Karimireddy et al. (2019), arXiv:1901.09847.
"""

import math
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from updates.errors import CompressionError
from updates.topk import Vector

OWNER_BYTES: Final = 32
MIN_MAX_NORM: Final = 1e-30
"""Smallest bound: below it float32 subnormals round by more than the margin taken here."""

_MAGIC: Final = b"FAR1"
_HEADER: Final = struct.Struct("<4sIQQ32s")
_DIGEST_BYTES: Final = 8
_LITTLE_FLOAT32: Final = np.dtype("<f4")
_CHUNK: Final = 1 << 16  # coordinates widened at a time: 512 KiB of float64, fits in L2

# Rounding to float32 grows a coordinate by a factor of at most 1 + 2**-24.
_ROUNDING_MARGIN: Final = 1.0 - 2.0**-23


class ResidualError(CompressionError):
    """The bytes are no undamaged residual of the expected owner and dimension."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Residual:
    """What was not sent up to and including a round. Not to be modified.

    Attributes:
        vector: (d,), float32, finite.
        round: number of the round whose update the server took, 0 to 2^64 - 1.

    Raises:
        CompressionError: if a field is out of range.
    """

    vector: Vector
    round: int

    def __post_init__(self) -> None:
        vector = self.vector
        if vector.ndim != 1 or vector.dtype != np.float32:
            message = f"vector of {vector.dtype}{vector.shape} must be float32 of shape (d,)"
            raise CompressionError(message)
        if not np.isfinite(vector).all():
            message = "vector of a residual must be finite"
            raise CompressionError(message)
        if not 0 <= self.round < 2**64:
            message = f"round={self.round} must be in 0..2**64 - 1"
            raise CompressionError(message)


def carried(
    residual: Residual | None, *, round_number: int, decay: float, max_age: int
) -> Vector | None:
    """Give what is added to the update of a round, if anything.

    Args:
        residual: what the device holds.
        round_number: r, the round it takes part in.
        decay: factor for each round between the residual's round and r, in (0, 1].
        max_age: rounds after which a residual is dropped, from 1.

    Returns:
        (d,), float32; the residual's own vector where nothing has decayed. None if there is
        none, if it is older than `max_age` rounds, or if it is not from a round before r.

    Raises:
        CompressionError: if `decay` or `max_age` is out of range.

    Guarantees:
        decay^(r - 1 - residual's round) times the residual, rounded once.
    """
    if not 0 < decay <= 1:
        message = f"decay={decay} must be in (0, 1]"
        raise CompressionError(message)
    if max_age < 1:
        message = f"max_age={max_age} must be at least 1"
        raise CompressionError(message)
    if residual is None or not 1 <= round_number - residual.round <= max_age:
        return None
    return _scaled(residual.vector, decay ** (round_number - residual.round - 1))


def remaining(
    wanted: Vector, sent: NDArray[np.float32], *, scale: float, max_norm: float
) -> Vector:
    """Compute what a device keeps of the update that it has sent.

    Args:
        wanted: p, (d,), float32: the update plus what was kept. Not modified.
        sent: (d,), float32: what the server decodes and expands. Not modified.
        scale: c, the factor that clipping scaled the compressed vector by, in (0, 1].
        max_norm: bound of the result's L2 norm; finite, at least `MIN_MAX_NORM`.

    Returns:
        (d,), float32: p - sent / c, rounded once; scaled down where it is longer than `max_norm`.
        Zeros where a difference is not finite: a device starts afresh after a broken update.

    Raises:
        CompressionError: if shapes or types do not fit, or an argument is out of range.

    Guarantees:
        Finite, and of a norm of at most `max_norm`, rounding included.

    Cost: O(d) time, 4 d bytes of memory.
    """
    _check(wanted, sent, scale, max_norm)
    kept = np.empty(len(wanted), np.float32)
    squares = 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # answered below
        for start in range(0, len(wanted), _CHUNK):
            part = slice(start, start + _CHUNK)
            difference = wanted[part].astype(np.float64)
            difference -= sent[part].astype(np.float64) / scale
            kept[part] = difference
            rounded = kept[part].astype(np.float64)
            squares += float(np.add.reduce(rounded * rounded))
    norm = math.sqrt(squares) if math.isfinite(squares) else math.inf
    if not math.isfinite(norm):
        return np.zeros(len(wanted), np.float32)
    if norm <= max_norm:
        return kept
    return _scaled(kept, max_norm / norm * _ROUNDING_MARGIN)


def to_bytes(residual: Residual, *, owner: bytes) -> bytes:
    """Write a residual.

    Args:
        residual: what to write.
        owner: 32 bytes that tell whose it is: a digest of what must not change between writing
            and reading, as the task and the shape of its model.

    Raises:
        CompressionError: if `owner` does not have 32 bytes.

    Guarantees:
        `from_bytes` gives the same residual back, bit for bit.
    """
    _check_owner(owner)
    vector = residual.vector
    header = _HEADER.pack(_MAGIC, 0, len(vector), residual.round, owner)
    body = header + np.ascontiguousarray(vector, _LITTLE_FLOAT32).tobytes()
    return body + xxhash.xxh3_64_digest(body)[::-1]


def from_bytes(data: bytes, *, owner: bytes, dim: int) -> Residual:
    """Read what `to_bytes` wrote.

    Args:
        data: as written.
        owner: as it was written with.
        dim: d of the model.

    Raises:
        ResidualError: if the bytes are anything else: damaged, cut short, of another owner or
            of another dimension.
        CompressionError: if `owner` does not have 32 bytes.

    Guarantees:
        Damage goes unnoticed with a chance of about 2^-64. That protects against accidents, not
        against forgery.
    """
    _check_owner(owner)
    expected = _HEADER.size + 4 * dim + _DIGEST_BYTES
    if len(data) != expected:
        message = f"residual of {len(data)} bytes must have {expected} for dim={dim}"
        raise ResidualError(message)
    body = memoryview(data)[:-_DIGEST_BYTES]
    if xxhash.xxh3_64_digest(body)[::-1] != data[-_DIGEST_BYTES:]:
        message = "checksum of the residual must be that of its bytes: it is damaged"
        raise ResidualError(message)
    magic, zero, length, number, written = _HEADER.unpack_from(body)
    if (magic, zero, length) != (_MAGIC, 0, dim):
        message = f"residual must begin with {_MAGIC!r}, zeros and dim={dim}"
        raise ResidualError(message)
    if written != owner:
        message = f"owner={written.hex()} of the residual must be {owner.hex()}"
        raise ResidualError(message)
    vector = np.frombuffer(body, _LITTLE_FLOAT32, offset=_HEADER.size).astype(np.float32)
    try:
        return Residual(vector=vector, round=number)
    except CompressionError as error:
        raise ResidualError(str(error)) from error


def _check(wanted: Vector, sent: NDArray[np.float32], scale: float, max_norm: float) -> None:
    for name, vector in (("wanted", wanted), ("sent", sent)):
        if vector.ndim != 1 or vector.dtype != np.float32 or len(vector) != len(wanted):
            message = f"{name} of {vector.dtype}{vector.shape} must be float32 of the shape"
            message += f" ({len(wanted)},)"
            raise CompressionError(message)
    if not 0 < scale <= 1:
        message = f"scale={scale} must be in (0, 1]"
        raise CompressionError(message)
    if not MIN_MAX_NORM <= max_norm < math.inf:
        message = f"max_norm={max_norm} must be finite and at least {MIN_MAX_NORM}"
        raise CompressionError(message)


def _check_owner(owner: bytes) -> None:
    if len(owner) != OWNER_BYTES:
        message = f"len(owner)={len(owner)} must be {OWNER_BYTES}"
        raise CompressionError(message)


def _scaled(vector: Vector, scale: float) -> Vector:
    if scale == 1.0:
        return vector
    scaled = np.empty(len(vector), np.float32)
    for start in range(0, len(vector), _CHUNK):
        part = slice(start, start + _CHUNK)
        scaled[part] = vector[part].astype(np.float64) * scale
    return scaled
