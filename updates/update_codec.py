"""The one registry of encodings: for each compression plan, how updates are written and read.

Dense float32 updates are what `updates.codec` writes. All others are a 16-byte header and a
body, little-endian:

    offset  size  field
    0       4     magic, b"FAU1"
    4       1     codec: 2 = positions and numbers, 3 = numbers of a common map, 4 = all numbers
    5       1     type of the numbers: 1 = float32, 2 = float16, 4 = bfloat16, 5 = int8, 6 = int4
    6       1     stage: 0 = the body as it is, 1 = one zstd frame of it; see updates/stage.py
    7       1     zero
    8       8     dimension d of the model, unsigned
    16      ...   codec 2: positions (updates/index_coding.py), then their numbers
                  codecs 3 and 4: the numbers (updates/quantization.py)

One update has one encoding for each plan and stage: whatever is decoded is encoded to the same
bytes again, with any seed. A sender without the plan's version of libzstd writes stage 0; one that
has it writes stage 1 where that is smaller.
"""

import struct
from dataclasses import dataclass
from typing import Final, Protocol

from updates import codec
from updates.codec import (
    MAGIC,
    MalformedUpdateError,
    NonCanonicalUpdateError,
    WrongDtypeError,
    WrongShapeError,
)
from updates.coded_body import Body, SparseBody, VectorBody, as_vector
from updates.compression_plan import CompressionPlan, Method, ValueType
from updates.index_coding import layers_of
from updates.sparse import Content
from updates.stage import Stage

HEADER_BYTES: Final = 16
CODEC_SPARSE: Final = 2
CODEC_MAPPED: Final = 3
CODEC_DENSE_QUANTIZED: Final = 4

_HEADER: Final = struct.Struct("<4sBBBBQ")
_TYPE_NUMBERS: Final = {
    ValueType.FLOAT32: 1,
    ValueType.FLOAT16: 2,
    ValueType.BFLOAT16: 4,
    ValueType.INT8: 5,
    ValueType.INT4: 6,
}
_CODEC_NUMBERS: Final = {
    Method.DENSE: CODEC_DENSE_QUANTIZED,
    Method.TOP_K: CODEC_SPARSE,
    Method.RAND_K: CODEC_MAPPED,
    Method.ANNOUNCED: CODEC_MAPPED,
    Method.PROJECTION: CODEC_MAPPED,
}
_TYPE_NAMES: Final = {
    3: "float64",
    **{number: kind.value for kind, number in _TYPE_NUMBERS.items()},
}


class Validator(Protocol):
    """Checks one payload as it arrives. Not safe for use from several threads at once."""

    def feed(self, chunk: memoryview | bytes) -> None:
        """Check the next bytes, of any number.

        Raises:
            CodecError: as soon as they are known to be wrong. Final: all later calls raise it.
        """
        ...

    def finish(self) -> None:
        """Accept the payload as complete.

        Raises:
            CodecError: if `UpdateCodec.decode` refuses it.
        """
        ...


class UpdateCodec(Protocol):
    """Writes and reads the updates of one plan. Safe for use from several threads at once."""

    @property
    def max_payload_bytes(self) -> int:
        """Most bytes that an encoded update has."""
        ...

    def encode(self, content: Content, *, seed: bytes) -> bytes:
        """Write an update.

        Args:
            content: finite: all numbers (d,), those of a common map (k,), or at most k
                coordinates, as the plan's method has it; float32. Not modified.
            seed: of stochastic rounding; any bytes, not to be used twice by one device. Types of
                floats do not use it.

        Returns:
            At most `max_payload_bytes`.

        Raises:
            WrongShapeError: if the content is of another kind or size.
            WrongDtypeError: if it is not float32.
            NonFiniteUpdateError: if a number is NaN or infinite.

        Guarantees:
            The same arguments give the same bytes. `decode` gives what `quantization.quantize`
            makes of the numbers, at the same coordinates but for those whose numbers are zero, or
            too small for the type. Encoding what `decode` gives, with any seed, gives the same
            bytes.

        Cost: O(k log(d / k)) time, O(k) memory.
        """
        ...

    def decode(self, payload: bytes | memoryview) -> Content:
        """Read an update.

        Args:
            payload: of any length and content; a memoryview must be contiguous.

        Returns:
            What `encode` was given, up to the type of the numbers; read-only.

        Raises:
            MalformedUpdateError: if the bytes are no encoding of the plan.
            NonCanonicalUpdateError: if they are not the one encoding of their content.
            WrongShapeError: if the dimension is not the model's.
            WrongDtypeError: if the type of the numbers is not the plan's.
            NonFiniteUpdateError: if a number is NaN or infinite.

        Guarantees:
            No payload is accepted that `encode` does not make of what is returned, here or where
            libzstd has another version. Time and memory follow the plan, whatever the payload says.

        Cost: O(k log(d / k)) time, O(k) memory.
        """
        ...

    def validator(self) -> Validator:
        """Start the check of one payload; it holds at most `max_payload_bytes`.

        It refuses what `decode` refuses, with the same error, however the payload is cut.
        """
        ...


def codec_for(plan: CompressionPlan, layer_sizes: tuple[int, ...]) -> UpdateCodec:
    """Give the codec of a plan.

    Args:
        plan: of the round.
        layer_sizes: elements of each of the model's tensors, in order; their sum is `plan.dim`.

    Raises:
        CompressionError: if the sizes do not sum to the plan's dimension.
    """
    layers = layers_of(layer_sizes, dim=plan.dim)
    if plan.method is Method.DENSE and plan.value_type is ValueType.FLOAT32:
        return DenseCodec(dim=plan.dim)
    body: Body
    if plan.method is Method.TOP_K:
        body = SparseBody(layers=layers, max_values=plan.num_values, value_type=plan.value_type)
    else:
        body = VectorBody(num_values=plan.num_values, value_type=plan.value_type)
    return CodedUpdates(
        number=_CODEC_NUMBERS[plan.method],
        value_type=plan.value_type,
        dim=plan.dim,
        body=body,
        stage=Stage(plan_version=plan.zstd_version, max_body_bytes=body.max_bytes),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseCodec:
    """All numbers as float32; no stage."""

    dim: int

    @property
    def max_payload_bytes(self) -> int:
        """The bytes that every payload has."""
        return codec.dense_payload_bytes(self.dim)

    def encode(self, content: Content, *, seed: bytes) -> bytes:
        """Encode (dim,) float32; nothing is rounded, so the seed does not matter."""
        del seed
        return codec.encode_dense(as_vector(content, num_values=self.dim))

    def decode(self, payload: bytes | memoryview) -> Content:
        """Read (dim,) float32, a read-only view of the payload where it can be one."""
        return codec.decode(payload, dim=self.dim)

    def validator(self) -> Validator:
        """Start a check that keeps no more than a few bytes of the payload."""
        return codec.DenseValidator(dim=self.dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedUpdates:
    """Header, body and stage; see the module."""

    number: int
    value_type: ValueType
    dim: int
    body: Body
    stage: Stage

    @property
    def max_payload_bytes(self) -> int:
        """The header, and the largest body: a stage never makes one larger."""
        # A stage never makes a body larger.
        return HEADER_BYTES + self.stage.max_body_bytes

    def encode(self, content: Content, *, seed: bytes) -> bytes:
        """Write the body, pack it, and put the header before it."""
        stage, data = self.stage.pack(self.body.write(content, seed=seed))
        value_type = _TYPE_NUMBERS[self.value_type]
        return _HEADER.pack(MAGIC, self.number, value_type, stage, 0, self.dim) + data

    def decode(self, payload: bytes | memoryview) -> Content:
        """Check the header and the length, unpack, and read the body."""
        view = memoryview(payload).cast("B")
        stage = self.check_header(bytes(view[:HEADER_BYTES]))
        self.check_length(len(view))
        return self.body.read(self.stage.unpack(stage, view[HEADER_BYTES:]))

    def validator(self) -> Validator:
        """Start a check that keeps the payload and decodes it at the end."""
        return BufferedValidator(self)

    def check_length(self, num_bytes: int) -> None:
        """Refuse a payload that no content has, by its length.

        Raises:
            MalformedUpdateError: if it is too long.
        """
        if num_bytes > self.max_payload_bytes:
            message = f"payload must be at most {self.max_payload_bytes} bytes, got more"
            raise MalformedUpdateError(message)

    def check_header(self, header: bytes) -> int:
        """Return the stage that a header names.

        Raises:
            CodecError: if it is not a header of this codec.
        """
        if len(header) < HEADER_BYTES:
            message = f"payload of {len(header)} bytes must start with a {HEADER_BYTES}-byte header"
            raise MalformedUpdateError(message)
        magic, number, value_type, stage, zero, dim = _HEADER.unpack(header)
        if magic != MAGIC:
            message = f"magic={magic!r} must be {MAGIC!r}"
            raise MalformedUpdateError(message)
        if number != self.number:
            message = f"codec={number} must be {self.number}, the plan's"
            raise MalformedUpdateError(message)
        if value_type != _TYPE_NUMBERS[self.value_type]:
            message = f"type of numbers {_TYPE_NAMES.get(value_type, value_type)} must be"
            message += f" {self.value_type.value}, the plan's"
            known = value_type in _TYPE_NAMES
            raise WrongDtypeError(message) if known else MalformedUpdateError(message)
        if zero != 0:
            message = f"reserved={zero:#04x} must be zero"
            raise NonCanonicalUpdateError(message)
        if dim != self.dim:
            message = f"dim={dim} must be the model's dimension {self.dim}"
            raise WrongShapeError(message)
        result: int = stage
        return result


class BufferedValidator:
    """Checks length and header at once, and the whole at the end; see `Validator`."""

    __slots__ = ("_codec", "_payload", "_refusal")

    def __init__(self, updates: CodedUpdates) -> None:
        self._codec = updates
        self._payload = bytearray()
        self._refusal: codec.CodecError | None = None

    def feed(self, chunk: memoryview | bytes) -> None:
        """Keep the next bytes, unless they are too many or the header is wrong."""
        self._raise_refusal()
        view = memoryview(chunk).cast("B")
        try:
            self._check(view)
        except codec.CodecError as error:
            self._refusal = error
            raise

    def finish(self) -> None:
        """Decode the whole."""
        self._raise_refusal()
        try:
            self._codec.decode(memoryview(self._payload))
        except codec.CodecError as error:
            self._refusal = error
            raise

    def _raise_refusal(self) -> None:
        if self._refusal is not None:
            raise self._refusal

    def _check(self, view: memoryview) -> None:
        missing = HEADER_BYTES - len(self._payload)
        if missing > 0:
            self._payload += view[:missing]
            view = view[missing:]
            if len(self._payload) == HEADER_BYTES:
                self._codec.check_header(bytes(self._payload))
        self._codec.check_length(len(self._payload) + len(view))
        self._payload += view
