"""The last model a device received: not fetched again while its hash stays the same."""

import numpy as np
from numpy.typing import NDArray

from client.errors import ModelIntegrityError
from client.transport.messages import Assignment
from updates.errors import ModelError
from updates.vectors import ModelLayout, decode_model, layout_of


class ReceivedModel:
    """A verified model, decoded: read-only tensors in model order."""

    def __init__(self, data: bytes, assignment: Assignment) -> None:
        """Decode `data`.

        Raises:
            ModelIntegrityError: if it is no float32 model of the assignment's dimension.
        """
        try:
            tensors, _ = decode_model(data)
        except ModelError as error:
            raise ModelIntegrityError(f"the model file is unreadable: {error}") from error
        layout = layout_of(tensors)
        if layout.dim != assignment.dim:
            raise ModelIntegrityError(
                f"the model has {layout.dim} elements, the assignment says {assignment.dim}"
            )
        for tensor in tensors.values():
            tensor.flags.writeable = False
        self.sha256 = assignment.model_sha256
        self.tensors: dict[str, NDArray[np.float32]] = tensors
        self.layout: ModelLayout = layout


class ModelCache:
    """Holds one model, in memory."""

    def __init__(self) -> None:
        self._model: ReceivedModel | None = None

    def get(self, sha256: str) -> ReceivedModel | None:
        """Return the model of that hash, if it is the one held."""
        return self._model if self._model and self._model.sha256 == sha256 else None

    def put(self, model: ReceivedModel) -> None:
        """Hold `model` in place of the last one."""
        self._model = model
