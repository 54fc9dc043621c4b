"""The encoding of a dense float32 update: a 16-byte header and a body, little-endian.

    offset  size  field
    0       4     magic, b"FAU1"
    4       1     codec: 1 = dense; updates/update_codec.py has the others
    5       1     element type: 1 = float32 (2 = float16 and 3 = float64 are known and refused)
    6       2     zero
    8       8     dimension d, unsigned
    16      4*d   d float32 values, all finite

`decode` and `DenseValidator` apply the same checks in the order of the bytes, so they refuse the
same payloads with the same error, however the payload is cut into chunks.
"""

import math
import struct
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.float32]

HEADER_BYTES: Final = 16
MAGIC: Final = b"FAU1"
CODEC_DENSE: Final = 1
DTYPE_FLOAT32: Final = 1
ELEMENT_BYTES: Final = 4

_HEADER: Final = struct.Struct("<4sBBHQ")
_REFUSED_DTYPES: Final = {2: "float16", 3: "float64"}
_LITTLE_FLOAT32: Final = np.dtype("<f4")
_CHECK_CHUNK: Final = 1 << 18  # values checked at a time: 256 KiB of answers, fits in L2


class CodecError(ValueError):
    """A payload or vector that is not an acceptable update. Root of this package's errors."""


class MalformedUpdateError(CodecError):
    """The bytes are not an encoded update: magic, codec, element type or length is wrong."""


class NonCanonicalUpdateError(CodecError):
    """The payload decodes, but is not the one encoding of its value."""


class WrongShapeError(CodecError):
    """The dimension is not the model's."""


class WrongDtypeError(CodecError):
    """The element type is known, but is not the one that is wanted."""


class NonFiniteUpdateError(CodecError):
    """A value is NaN or infinite."""


def dense_payload_bytes(dim: int) -> int:
    """Give the size in bytes of the dense encoding of a `dim`-dimensional update."""
    return HEADER_BYTES + ELEMENT_BYTES * dim


def encode_dense(vector: Vector) -> bytes:
    """Encode an update.

    Args:
        vector: (d,), float32, finite. Not modified; need not be contiguous.

    Returns:
        `dense_payload_bytes(d)` bytes.

    Raises:
        WrongShapeError: if `vector` is not one-dimensional.
        WrongDtypeError: if `vector` is not float32.
        NonFiniteUpdateError: if any entry is NaN or infinite.

    Guarantees:
        `decode` returns the same bits; equal bits have equal encodings.

    Cost: O(d) time and memory.
    """
    if vector.ndim != 1:
        message = f"vector.ndim={vector.ndim} must be 1"
        raise WrongShapeError(message)
    if vector.dtype != np.float32:
        message = f"vector.dtype={vector.dtype} must be float32"
        raise WrongDtypeError(message)
    _check_finite(vector, offset=0)
    header = _HEADER.pack(MAGIC, CODEC_DENSE, DTYPE_FLOAT32, 0, vector.shape[0])
    return b"".join((header, np.ascontiguousarray(vector, dtype=_LITTLE_FLOAT32).data))


def decode(payload: bytes | memoryview, *, dim: int) -> Vector:
    """Decode and validate an update.

    Args:
        payload: one encoded update; a memoryview must be contiguous.
        dim: d, the model's dimension.

    Returns:
        (d,), float32, read-only. It shares memory with `payload` where that is aligned.

    Raises:
        MalformedUpdateError: if magic, codec, element type or length is wrong.
        WrongDtypeError: if the element type is float16 or float64.
        NonCanonicalUpdateError: if a reserved byte is not zero.
        WrongShapeError: if the header's dimension is not `dim`.
        NonFiniteUpdateError: if any value is NaN or infinite.

    Cost: O(d) time, O(1) memory where the payload is aligned.
    """
    view = memoryview(payload).cast("B")
    _check_header(bytes(view[:HEADER_BYTES]), dim)
    body = view[HEADER_BYTES:]
    values = _values_of(body[: min(len(body), ELEMENT_BYTES * dim)])
    _check_finite(values, offset=0)
    if len(body) != ELEMENT_BYTES * dim:
        raise _wrong_length(len(body), dim)
    vector: Vector = values.astype(np.float32, copy=not values.flags.aligned)
    vector.flags.writeable = False
    return vector


class DenseValidator:
    """Validates an encoded update while it arrives, holding less than one header of it.

    Feed the chunks in order, from any boundaries, then call `finish`. A refusal is final: every
    later call raises the same error. Not safe for use from several threads at once.
    """

    __slots__ = ("_carry", "_dim", "_num_values", "_refusal", "_seen_header")

    def __init__(self, *, dim: int) -> None:
        """Expect an update of dimension `dim`."""
        self._dim = dim
        self._carry = b""  # bytes of an incomplete header or value
        self._seen_header = False
        self._num_values = 0
        self._refusal: CodecError | None = None

    def feed(self, chunk: memoryview | bytes) -> None:
        """Check the next bytes of the payload.

        Args:
            chunk: the bytes that follow those fed before; may be empty. Not kept.

        Raises:
            CodecError: as `decode`, as soon as the offending byte is seen.

        Cost: O(len(chunk)) time, O(1) memory.
        """
        self._raise_refusal()
        try:
            self._check(memoryview(chunk).cast("B"))
        except CodecError as error:
            self._refusal = error
            raise

    def finish(self) -> None:
        """Accept the payload as complete.

        Raises:
            MalformedUpdateError: if bytes are missing.
            CodecError: whatever `feed` raised before.
        """
        self._raise_refusal()
        if not self._seen_header:
            _check_header(self._carry, self._dim)
        if self._num_values != self._dim:
            raise _wrong_length(ELEMENT_BYTES * self._num_values + len(self._carry), self._dim)

    def _raise_refusal(self) -> None:
        if self._refusal is not None:
            raise self._refusal

    def _check(self, view: memoryview) -> None:
        if not self._seen_header:
            missing = HEADER_BYTES - len(self._carry)
            self._carry += bytes(view[:missing])
            view = view[missing:]
            if len(self._carry) < HEADER_BYTES:
                return
            _check_header(self._carry, self._dim)
            self._seen_header, self._carry = True, b""
        room = ELEMENT_BYTES * (self._dim - self._num_values) - len(self._carry)
        self._check_values(view[:room])
        if len(view) > room:
            raise _wrong_length(ELEMENT_BYTES * self._dim + len(view) - room, self._dim)

    def _check_values(self, view: memoryview) -> None:
        if self._carry:
            missing = ELEMENT_BYTES - len(self._carry)
            self._carry += bytes(view[:missing])
            view = view[missing:]
            if len(self._carry) < ELEMENT_BYTES:
                return
            self._add(_values_of(memoryview(self._carry)))
        self._carry = bytes(view[len(view) - len(view) % ELEMENT_BYTES :])
        self._add(_values_of(view))

    def _add(self, values: Vector) -> None:
        _check_finite(values, offset=self._num_values)
        self._num_values += values.shape[0]


def _check_header(header: bytes, dim: int) -> None:
    if len(header) < HEADER_BYTES:
        message = f"payload of {len(header)} bytes must start with a {HEADER_BYTES}-byte header"
        raise MalformedUpdateError(message)
    magic, codec, dtype, reserved, header_dim = _HEADER.unpack(header)
    if magic != MAGIC:
        message = f"magic={magic!r} must be {MAGIC!r}"
        raise MalformedUpdateError(message)
    if codec != CODEC_DENSE:
        message = f"codec={codec} must be {CODEC_DENSE} (dense)"
        raise MalformedUpdateError(message)
    if dtype in _REFUSED_DTYPES:
        message = f"element type {_REFUSED_DTYPES[dtype]} must be float32"
        raise WrongDtypeError(message)
    if dtype != DTYPE_FLOAT32:
        message = f"element type {dtype} must be {DTYPE_FLOAT32} (float32)"
        raise MalformedUpdateError(message)
    if reserved != 0:
        message = f"reserved={reserved:#06x} must be zero"
        raise NonCanonicalUpdateError(message)
    if header_dim != dim:
        message = f"dim={header_dim} must be the model's dimension {dim}"
        raise WrongShapeError(message)


def _wrong_length(body_bytes: int, dim: int) -> MalformedUpdateError:
    expected = ELEMENT_BYTES * dim
    got = "more" if body_bytes > expected else str(body_bytes)
    return MalformedUpdateError(f"body must be {expected} bytes for dim={dim}, got {got}")


def _values_of(body: memoryview) -> Vector:
    """View the whole values at the start of `body`."""
    return np.frombuffer(body, dtype=_LITTLE_FLOAT32, count=len(body) // ELEMENT_BYTES)


def _check_finite(values: Vector, *, offset: int) -> None:
    """Refuse the first value that is not finite; it is coordinate `offset` or later."""
    # NaN and infinity survive a sum of squares, which is one pass without a temporary. So does a
    # sum of large finite values that overflows: only the slow check refuses.
    with np.errstate(all="ignore"):
        if math.isfinite(np.dot(values, values)):
            return
    for start in range(0, values.shape[0], _CHECK_CHUNK):
        finite = np.isfinite(values[start : start + _CHECK_CHUNK])
        if not finite.all():
            position = offset + start + int(finite.argmin())
            message = f"value at coordinate {position} must be finite"
            raise NonFiniteUpdateError(message)
