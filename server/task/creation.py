"""Puts a task that is new into the stores."""

import time

from server.config import ConfigError
from server.round.blob_names import model_blob
from server.round.ports import ModelRegistry, ModelVersion
from server.storage.blobs import BlobStore
from server.task.preparation import PreparedTask


async def create_task(task: PreparedTask, registry: ModelRegistry, blobs: BlobStore) -> None:
    """Store the initial model as version 1, unless the task has one.

    Raises:
        ConfigError: if what is stored under the task's name has another size.
    """
    info, dim = task.info, task.info.dim
    await blobs.put(model_blob(info.name, None, task.model_sha256), task.model)
    model = ModelVersion(
        version=1,
        parent=None,
        round_number=None,
        sha256=task.model_sha256,
        size_bytes=len(task.model),
        dim=dim,
        created_at_ms=int(time.time() * 1000),
        metrics={},
    )
    await registry.create_task(info.name, model=model, num_rounds=info.terms.num_rounds)
    first = await registry.model(info.name, 1)
    if first.dim != dim:
        msg = (
            f"task {info.name}: initial-model has {dim} elements, the task that is stored under"
            f" this name has {first.dim}: choose another name"
        )
        raise ConfigError(msg)
