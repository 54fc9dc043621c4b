"""Other people's tensors made into a model: names, order, float32."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from updates.errors import ModelError
from updates.vectors import ORDER_KEY

_FLOATS: Final = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
_INTEGERS: Final = {
    **{f"I{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
}
_BFLOAT16: Final = "BF16"
_HEADER_BYTES: Final = 8
_MAX_LISTED: Final = 5


class Convert(Enum):
    """What may happen to numbers that are not float32."""

    LOSSLESS = "lossless"
    ROUND = "round"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor as a file has it.

    Attributes:
        type_name: of its elements, as the file says it.
        values: the elements; bfloat16 as float32, None where the type has no numbers.
    """

    type_name: str
    values: NDArray[np.generic] | None

    @property
    def is_floating(self) -> bool:
        """Whether its elements are floats that numpy, or float32, can hold."""
        return self.values is not None and self.values.dtype.kind == "f"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFile:
    """Tensors by name.

    Attributes:
        tensors: in the order of the file, where it has one.
        order: names in model order; None: the file does not say.
    """

    tensors: Mapping[str, Tensor]
    order: tuple[str, ...] | None


def is_safetensors(data: bytes) -> bool:
    """Tell whether bytes begin as a safetensors file does: a length, then a JSON object."""
    return data[_HEADER_BYTES : _HEADER_BYTES + 1] == b"{"


def read_safetensors(data: bytes) -> TensorFile:
    """Read a safetensors file, whoever wrote it.

    Raises:
        ModelError: if it is none, or the order that it records does not list its tensors.
    """
    try:
        found = deserialize(data)  # type: ignore[no-untyped-call]  # a compiled module
    except SafetensorError as error:
        message = f"the file is no safetensors file: {error}"
        raise ModelError(message) from error
    tensors = {
        name: Tensor(
            type_name=entry["dtype"],
            values=_values(entry["dtype"], entry["data"], entry["shape"]),
        )
        for name, entry in found
    }
    length = int.from_bytes(data[:_HEADER_BYTES], "little")
    header = json.loads(data[_HEADER_BYTES : _HEADER_BYTES + length])
    recorded = (header.get("__metadata__") or {}).get(ORDER_KEY)
    order = None
    if recorded is not None:
        order = check_order(_listed(recorded), tensors, source=f"metadata {ORDER_KEY!r}")
    elif len(tensors) == 1:
        order = tuple(tensors)
    return TensorFile(tensors=tensors, order=order)


def read_order(given: str) -> tuple[str, ...]:
    """Read names in model order: separated by commas, or from a file.

    Args:
        given: names; or the path of a file that has one on each line, or a JSON list of them.

    Raises:
        ModelError: if the file cannot be read.
    """
    path = Path(given)
    try:
        is_file = path.is_file()
        text = path.read_text(encoding="utf-8") if is_file else given
    except (OSError, UnicodeDecodeError) as error:
        message = f"--order {given} cannot be read: {error}"
        raise ModelError(message) from error
    if text.lstrip().startswith("["):
        return _listed(text)
    names = text.splitlines() if is_file else text.split(",")
    return tuple(name.strip() for name in names if name.strip())


def check_order(
    order: Sequence[str], tensors: Mapping[str, object], *, source: str
) -> tuple[str, ...]:
    """Return an order that lists every tensor once.

    Raises:
        ModelError: if it does not; it names what is unknown, missing or repeated.
    """
    listed = list(order)
    for what, names in (
        ("names unknown tensors", [name for name in listed if name not in tensors]),
        ("does not name", [name for name in tensors if name not in listed]),
        ("repeats", sorted({name for name in listed if listed.count(name) > 1})),
    ):
        if names:
            more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
            message = f"{source} {what}: {', '.join(names[:_MAX_LISTED])}{more}"
            raise ModelError(message)
    return tuple(listed)


def model_tensors(
    file: TensorFile, order: Sequence[str], *, convert: Convert | None, floats_only: bool
) -> dict[str, NDArray[np.float32]]:
    """Make the tensors of a model.

    Args:
        file: what was read.
        order: its tensors in model order.
        convert: what may happen to numbers that are not float32; None: they are refused.
        floats_only: leave out tensors that are not floating-point, such as counters.

    Returns:
        float32 tensors in model order.

    Raises:
        ModelError: if a tensor cannot be float32 so, holds NaN or infinity, or none is left.
    """
    model = {
        name: _float32(name, file.tensors[name], convert)
        for name in order
        if file.tensors[name].is_floating or not floats_only
    }
    if not sum(tensor.size for tensor in model.values()):
        message = "the file has no numbers to train"
        raise ModelError(message)
    return model


def _float32(name: str, tensor: Tensor, convert: Convert | None) -> NDArray[np.float32]:
    values = tensor.values
    if values is None or values.dtype.kind not in "fiu":
        message = f"tensor {name!r} of type {tensor.type_name} cannot be part of a model"
        raise ModelError(message)
    is_float32 = tensor.type_name in {"F32", "torch.float32"}
    if not is_float32 and convert is None:
        message = f"tensor {name!r} of type {tensor.type_name} must be float32; --convert lossless"
        message += " or --convert round makes it so"
        if not tensor.is_floating:
            message += ", --floats-only leaves it out"
        raise ModelError(message)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        message = f"tensor {name!r} holds NaN or infinity"
        raise ModelError(message)
    with np.errstate(over="ignore"):
        result = values.astype(np.float32)
    if not np.isfinite(result).all():
        message = f"tensor {name!r} of type {tensor.type_name} holds numbers beyond float32"
        raise ModelError(message)
    if convert is Convert.LOSSLESS and not _is_same(result, values):
        message = f"tensor {name!r} of type {tensor.type_name} holds numbers that float32 rounds;"
        message += " --convert round accepts that"
        raise ModelError(message)
    return result


def _is_same(result: NDArray[np.float32], values: NDArray[np.generic]) -> bool:
    if values.dtype.kind == "f":
        return bool((result.astype(values.dtype) == values).all())
    # Whole numbers of float32 compare exactly as Python's.
    return all(int(one) == int(other) for one, other in zip(result.flat, values.flat, strict=True))


def _values(type_name: str, data: bytes, shape: Sequence[int]) -> NDArray[np.generic] | None:
    if type_name == _BFLOAT16:
        # The upper half of a float32.
        halves = np.frombuffer(data, dtype="<u2").astype(np.uint32) << np.uint32(16)
        return halves.view(np.float32).reshape(shape)
    dtype = _FLOATS.get(type_name) or _INTEGERS.get(type_name)
    return None if dtype is None else np.frombuffer(data, dtype=dtype).reshape(shape)


def _listed(text: str) -> tuple[str, ...]:
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        message = f"the order must be a JSON list of names, got {text[:80]!r}"
        raise ModelError(message)
    return tuple(names)
