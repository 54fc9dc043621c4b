"""A bench per test, with one task of two rounds."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.config import TaskConfig
from server.config.durability import Durability
from server.processes.thread_pool import Workers
from server.round.blob_names import model_blob
from server.round.ports import ModelVersion
from server.storage.blobs import BlobStore
from server.storage.redis_client import RedisClient
from server.storage.redis_store import RedisRoundStore
from tests.server.driver.driver_bench import CLOCK, DIM, MODEL, TASK, Bench


@pytest.fixture
async def bench(tmp_path: Path, redis_url: str) -> AsyncIterator[Bench]:
    client = RedisClient(redis_url, clock=CLOCK)
    found = Bench(
        client=client,
        store=RedisRoundStore(client),
        blobs=BlobStore(str(tmp_path / "blobs"), durability=Durability.PROCESS, num_threads=1),
        workers=Workers("test", threads=1),
        folder=tmp_path,
        task=TaskConfig(
            name=TASK,
            initial_model=tmp_path / "unused",
            num_rounds=2,
            reporting_goal=2,
            over_selection=1.0,
            selection_timeout_s=60,
            collection_timeout_s=600,
        ),
    )
    await client.command("SET", "test:clock", 1_000_000)
    sha256 = hashlib.sha256(MODEL).hexdigest()
    await found.blobs.put(model_blob(TASK, None, sha256), MODEL)
    first = ModelVersion(
        version=1,
        parent=None,
        round_number=None,
        sha256=sha256,
        size_bytes=len(MODEL),
        dim=DIM,
        created_at_ms=0,
        metrics={},
    )
    await found.store.create_task(TASK, model=first, num_rounds=2)
    yield found
    found.workers.close()
    found.blobs.close()
    await client.close()
