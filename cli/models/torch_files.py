"""PyTorch files of `state_dict`s. Needs torch."""

import io
import pickle
from collections.abc import Mapping
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray

from cli.models.tensors import Tensor, TensorFile
from updates.errors import ModelError


def read_state_dict(data: bytes) -> TensorFile:
    """Read what `torch.save(model.state_dict(), ...)` wrote; nothing in it is run.

    Raises:
        ModelError: if it is no such file.
    """
    try:
        found: object = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # torch raises whatever its readers do.
    except (RuntimeError, ValueError, TypeError, KeyError, EOFError, OSError) as error:
        raise ModelError(_unreadable(error)) from error
    except (pickle.UnpicklingError, AttributeError, ImportError, IndexError) as error:
        raise ModelError(_unreadable(error)) from error
    if not isinstance(found, Mapping) or not found:
        message = f"the file holds {type(found).__name__}, not a state_dict"
        raise ModelError(message)
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            message = f"the file is no state_dict: {str(name)[:80]!r} is {type(tensor).__name__};"
            message += " save model.state_dict() alone"
            raise ModelError(message)
    tensors = {name: _tensor(tensor) for name, tensor in found.items()}
    return TensorFile(tensors=tensors, order=tuple(tensors))


def write_state_dict(tensors: Mapping[str, NDArray[np.float32]], file: IO[bytes]) -> None:
    """Write tensors as `torch.save` writes a `state_dict`."""
    torch.save({name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()}, file)


def _tensor(tensor: torch.Tensor) -> Tensor:
    values: NDArray[np.generic] | None = None
    is_plain = tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta
    if is_plain and tensor.dtype is torch.bfloat16:
        values = tensor.detach().to(torch.float32).numpy()
    elif is_plain and not tensor.is_complex():
        try:
            values = tensor.detach().contiguous().numpy()
        except TypeError:
            values = None  # a type that numpy does not have
    return Tensor(type_name=str(tensor.dtype), values=values)


def _unreadable(error: Exception) -> str:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return f"the file is neither safetensors nor a state_dict that torch reads: {first}"
