"""What follows the header of a compressed update: a list of numbers, or positions and numbers."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from updates.codec import (
    NonFiniteUpdateError,
    WrongDtypeError,
    WrongShapeError,
)
from updates.compression_plan import ValueType
from updates.index_coding import Layers, decode_indices, encode_indices
from updates.quantization import can_be_nonzero, dequantize, num_bytes, quantize
from updates.sparse import Content, SparseValues, Values


class Body(Protocol):
    """Writes and reads one kind of content."""

    @property
    def max_bytes(self) -> int:
        """Most bytes that a body has."""
        ...

    def write(self, content: Content, *, seed: bytes) -> bytes:
        """Write; see `updates.update_codec.UpdateCodec.encode`."""
        ...

    def read(self, data: memoryview) -> Content:
        """Read; see `updates.update_codec.UpdateCodec.decode`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorBody:
    """`num_values` numbers."""

    num_values: int
    value_type: ValueType

    @property
    def max_bytes(self) -> int:
        """The bytes that every body has."""
        return num_bytes(self.num_values, self.value_type)

    def write(self, content: Content, *, seed: bytes) -> bytes:
        """Encode all numbers; `seed` decides how they are rounded."""
        values = as_vector(content, num_values=self.num_values)
        return quantize(values, value_type=self.value_type, seed=seed)

    def read(self, data: memoryview) -> Values:
        """Decode a body of exactly `max_bytes`; the vector, (num_values,) float32, is read-only."""
        values = dequantize(data, num_values=self.num_values, value_type=self.value_type)
        values.flags.writeable = False
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseBody:
    """Positions and numbers of at most `max_values` coordinates; none of the numbers is zero."""

    layers: Layers
    max_values: int
    value_type: ValueType

    @property
    def max_bytes(self) -> int:
        """Most bytes that a body has."""
        return self.layers.max_bytes(self.max_values) + num_bytes(self.max_values, self.value_type)

    def write(self, content: Content, *, seed: bytes) -> bytes:
        """Encode positions and numbers, but for numbers that the type rounds to zero.

        Raises:
            WrongShapeError: if the content is not sparse, or of another dimension, or too long.
        """
        if not isinstance(content, SparseValues):
            message = f"content of type {type(content).__name__} must be SparseValues"
            raise WrongShapeError(message)
        indices, values = content.indices, content.values
        if content.dim != self.layers.dim or len(indices) > self.max_values:
            message = f"{len(indices)} values of dimension {content.dim} must be at most"
            message += f" {self.max_values} of dimension {self.layers.dim}"
            raise WrongShapeError(message)
        is_sent = can_be_nonzero(values, self.value_type)
        if not is_sent.all():
            indices, values = indices[is_sent], values[is_sent]
        numbers = quantize(values, value_type=self.value_type, seed=seed, has_zero=False)
        return encode_indices(indices, self.layers) + numbers

    def read(self, data: memoryview) -> SparseValues:
        """Decode positions and numbers; both arrays are read-only.

        Raises:
            MalformedUpdateError: if the bytes are no such body.
            NonCanonicalUpdateError: if they are not its one encoding.
        """
        indices, rest = decode_indices(data, self.layers, max_values=self.max_values)
        values = dequantize(
            rest, num_values=len(indices), value_type=self.value_type, has_zero=False
        )
        indices.flags.writeable = False
        values.flags.writeable = False
        return SparseValues(indices=indices, values=values, dim=self.layers.dim)


def as_vector(content: Content, *, num_values: int) -> Values:
    """Refuse content that is no finite float32 vector of `num_values` numbers.

    Raises:
        WrongShapeError: if it is sparse, or of another shape.
        WrongDtypeError: if it is not float32.
        NonFiniteUpdateError: if a number is NaN or infinite.
    """
    if isinstance(content, SparseValues) or content.shape != (num_values,):
        shape = "sparse" if isinstance(content, SparseValues) else content.shape
        message = f"content of shape {shape} must be of shape ({num_values},)"
        raise WrongShapeError(message)
    if content.dtype != np.float32:
        message = f"content of {content.dtype} must be float32"
        raise WrongDtypeError(message)
    is_finite = np.isfinite(content)
    if not is_finite.all():
        message = f"number {int(is_finite.argmin())} must be finite"
        raise NonFiniteUpdateError(message)
    return content
