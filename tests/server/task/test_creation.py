"""What of a task is in the stores before anybody takes part in it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from server.config import ConfigError, TaskConfig
from server.config.durability import Durability
from server.config.findings import Findings
from server.processes.thread_pool import Workers
from server.round.blob_names import model_blob
from server.storage.blobs import BlobStore
from server.storage.redis_client import RedisClient
from server.storage.redis_store import RedisRoundStore
from server.task.creation import create_task
from server.task.preparation import PreparedTask, prepare_task
from updates.vectors import encode_model


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisRoundStore]:
    client = RedisClient(redis_url)
    yield RedisRoundStore(client)
    await client.close()


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[BlobStore]:
    found = BlobStore(str(tmp_path / "blobs"), durability=Durability.PROCESS, num_threads=1)
    yield found
    found.close()


@pytest.fixture
def accountants() -> Iterator[Workers]:
    found = Workers("accountant", threads=1)
    yield found
    found.close()


def task_of(dim: int, folder: Path, accountants: Workers) -> PreparedTask:
    model = folder / f"model-{dim}.safetensors"
    model.write_bytes(encode_model({"w": np.zeros(dim, np.float32)}))
    config = TaskConfig.model_validate({"name": "t", "initial-model": str(model)})
    found = prepare_task(config, "task[1].", Findings(), accountants=accountants, now_s=1.8e9)
    assert found is not None
    return found


async def test_the_first_version_is_the_initial_model(
    store: RedisRoundStore, blobs: BlobStore, tmp_path: Path, accountants: Workers
) -> None:
    task = task_of(3, tmp_path, accountants)
    for _ in range(2):
        await create_task(task, store, blobs)
    (first,) = await store.models("t")
    assert (first.version, first.dim, first.parent) == (1, 3, None)
    assert await blobs.get(model_blob("t", None, first.sha256)) == task.model
    snapshot = await store.snapshot("t")
    assert (snapshot.current_version, snapshot.round) == (1, None)


async def test_a_task_keeps_the_dimension_it_was_created_with(
    store: RedisRoundStore, blobs: BlobStore, tmp_path: Path, accountants: Workers
) -> None:
    await create_task(task_of(3, tmp_path, accountants), store, blobs)
    with pytest.raises(ConfigError, match=r"has 4 elements, the task .* has 3"):
        await create_task(task_of(4, tmp_path, accountants), store, blobs)
    assert (await store.model("t", 1)).dim == 3
