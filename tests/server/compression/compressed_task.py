"""A task whose updates are compressed."""

import hashlib
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from server.compression.task_compression import TaskCompression
from server.round.blob_names import model_blob
from server.round.ports import ModelVersion
from updates.compression_plan import Method, ValueType
from updates.vectors import encode_model

SIZES: Final = (90, 10)
DIM: Final = 100


def task(method: str, **settings: object) -> TaskCompression:
    given = {name.replace("-", "_"): value for name, value in settings.items()}
    value_type = ValueType(given.pop("value_type", "float32"))
    defaults: dict[str, Any] = {
        "ratio": 0.1,
        "error_feedback": True,
        "residual_decay": 1.0,
        "max_residual_age": 20,
        "random_share": 0.5,
    }
    return TaskCompression(
        task="t",
        layer_sizes=SIZES,
        method=Method(method),
        value_type=value_type,
        **(defaults | given),
    )


def model_of(values: NDArray[np.float32]) -> bytes:
    return encode_model({"weight": values[:90].reshape(9, 10), "bias": values[90:]})


@dataclass
class Models:
    """Two versions of a model, each changed in other places than the one before."""

    files: dict[str, bytes] = field(default_factory=dict)
    versions: list[ModelVersion] = field(default_factory=list)
    reads: int = 0

    def publish(self, values: NDArray[np.float32]) -> None:
        data = model_of(values)
        sha256 = hashlib.sha256(data).hexdigest()
        number = len(self.versions) + 1
        self.files[model_blob("t", number - 1 or None, sha256)] = data
        self.versions.append(
            ModelVersion(
                version=number,
                parent=number - 1 or None,
                round_number=number - 1 or None,
                sha256=sha256,
                size_bytes=len(data),
                dim=DIM,
                created_at_ms=0,
                metrics={},
            )
        )

    async def model(self, task: str, version: int) -> ModelVersion:
        assert task == "t"
        self.reads += 1
        return self.versions[version - 1]

    async def models(self, task: str) -> tuple[ModelVersion, ...]:
        assert task == "t"
        return tuple(self.versions)

    async def create_task(self, task: str, *, model: ModelVersion, num_rounds: int) -> None:
        assert (task, num_rounds) == ("t", 1)
        self.versions = self.versions or [model]

    async def rollback(self, task: str, version: int) -> ModelVersion:
        return await self.model(task, version)

    async def get(self, key: str) -> bytes:
        return self.files[key]
