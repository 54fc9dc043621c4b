"""Models as named tensors, as one flat vector, and as safetensors bytes."""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from updates.errors import ModelError

ORDER_KEY: Final = "fedagg.order"
"""Metadata key holding the tensor names in model order, a JSON list."""

_METADATA: Final = "__metadata__"
_LENGTH: Final = struct.Struct("<Q")
_ALIGNMENT: Final = 8  # of the tensor data, as the format asks
_NO_METADATA: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A tensor's name and shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLayout:
    """Where each tensor lies in the flat vector: one after the other, each in C order.

    Raises:
        ModelError: if a name repeats.
    """

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        """Refuse repeated names."""
        if len({spec.name for spec in self.tensors}) != len(self.tensors):
            message = f"tensor names {[spec.name for spec in self.tensors]} must be unique"
            raise ModelError(message)

    @property
    def dim(self) -> int:
        """Length of the flat vector, d."""
        return sum(spec.size for spec in self.tensors)


def layout_of(tensors: Mapping[str, NDArray[np.generic]]) -> ModelLayout:
    """Describe tensors, in the order of the mapping."""
    return ModelLayout(
        tensors=tuple(
            TensorSpec(name=name, shape=tuple(tensor.shape)) for name, tensor in tensors.items()
        )
    )


def flatten(tensors: Mapping[str, NDArray[np.generic]], layout: ModelLayout) -> NDArray[np.float32]:
    """Lay tensors out as one vector.

    Args:
        tensors: exactly the layout's tensors, in any order; real numbers, rounded to float32.
        layout: the order and the shapes.

    Returns:
        (layout.dim,), float32, a copy.

    Raises:
        ModelError: if a tensor is missing, unknown, of another shape or not real.
    """
    names = {spec.name for spec in layout.tensors}
    if names != tensors.keys():
        message = f"tensors must be those of the layout, got {sorted(names ^ tensors.keys())}"
        message += " in one but not the other"
        raise ModelError(message)
    vector = np.empty(layout.dim, dtype=np.float32)
    start = 0
    for spec in layout.tensors:
        tensor = tensors[spec.name]
        if tuple(tensor.shape) != spec.shape or tensor.dtype.kind not in "fiu":
            message = f"tensor {spec.name!r} of {tensor.dtype}{tensor.shape} must be real numbers"
            message += f" of shape {spec.shape}"
            raise ModelError(message)
        vector[start : start + spec.size] = tensor.reshape(-1)
        start += spec.size
    return vector


def unflatten(vector: NDArray[np.float32], layout: ModelLayout) -> dict[str, NDArray[np.float32]]:
    """Cut a vector into tensors.

    Args:
        vector: (layout.dim,), float32. Not modified.
        layout: the order and the shapes.

    Returns:
        The tensors in layout order; copies, so training in place leaves `vector` as it is.

    Raises:
        ModelError: if `vector` has another shape or element type.
    """
    if vector.shape != (layout.dim,) or vector.dtype != np.float32:
        message = f"vector of {vector.dtype}{vector.shape} must be float32 of dim={layout.dim}"
        raise ModelError(message)
    tensors: dict[str, NDArray[np.float32]] = {}
    start = 0
    for spec in layout.tensors:
        tensors[spec.name] = vector[start : start + spec.size].reshape(spec.shape).copy()
        start += spec.size
    return tensors


def encode_model(
    tensors: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, str] = _NO_METADATA
) -> bytes:
    """Encode a model as safetensors.

    The format is written here because the library puts metadata entries in random order: equal
    models must have equal bytes, since a model version is known by the hash of its file.

    Args:
        tensors: float32 tensors in model order.
        metadata: entries to keep beside the order; `ORDER_KEY` is reserved.

    Returns:
        The file's bytes, the same for the same tensors in the same order and the same metadata.

    Raises:
        ModelError: if a tensor is not float32 or a name is reserved.
    """
    if ORDER_KEY in metadata:
        message = f"metadata key {ORDER_KEY!r} is reserved"
        raise ModelError(message)
    if _METADATA in tensors:
        message = f"tensor name {_METADATA!r} is reserved"
        raise ModelError(message)
    entries = {**metadata, ORDER_KEY: json.dumps(list(tensors))}
    header: dict[str, object] = {_METADATA: dict(sorted(entries.items()))}
    parts: list[bytes] = []
    offset = 0
    for name, tensor in tensors.items():
        _require_float32(name, tensor)
        parts.append(tensor.astype("<f4", copy=False).tobytes())
        span = [offset, offset + len(parts[-1])]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": span}
        offset = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return b"".join((_LENGTH.pack(len(text)), text, *parts))


def decode_model(
    data: bytes | memoryview,
) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """Decode a model from safetensors.

    Args:
        data: the file's bytes.

    Returns:
        The tensors in model order (by name where the file does not give the order), and the
        metadata without `ORDER_KEY`.

    Raises:
        ModelError: if `data` is not safetensors, a tensor is not float32, or the order does
            not list the tensors.
    """
    raw = bytes(data)
    try:
        tensors: dict[str, NDArray[np.generic]] = load(raw)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        message = f"data must be a safetensors file of float32 tensors: {error}"
        raise ModelError(message) from error
    for name, tensor in tensors.items():
        _require_float32(name, tensor)
    metadata = _metadata_of(raw)
    order = _parse_order(metadata.pop(ORDER_KEY, None), tensors)
    return {name: tensors[name].astype(np.float32, copy=False) for name in order}, metadata


def _require_float32(name: str, tensor: NDArray[np.generic]) -> None:
    if tensor.dtype != np.float32:
        message = f"tensor {name!r} of type {tensor.dtype} must be float32"
        raise ModelError(message)


def _metadata_of(raw: bytes) -> dict[str, str]:
    """Read the metadata of a file that the library has accepted, which does not return it."""
    (length,) = _LENGTH.unpack_from(raw)
    header: dict[str, dict[str, str]] = json.loads(raw[_LENGTH.size : _LENGTH.size + length])
    return dict(header.get(_METADATA) or {})


def _parse_order(text: str | None, tensors: Mapping[str, object]) -> list[str]:
    if text is None:
        return sorted(tensors)
    try:
        order = json.loads(text)
    except (ValueError, RecursionError):
        order = None
    is_listed = isinstance(order, list) and all(isinstance(name, str) for name in order)
    if not is_listed or sorted(order) != sorted(tensors):
        message = f"metadata {ORDER_KEY!r} must list the tensors, got {text[:200]!r}"
        raise ModelError(message)
    return [str(name) for name in order]
