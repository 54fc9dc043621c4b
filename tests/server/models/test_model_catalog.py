"""Model files as streams: cached or not, whole or from an offset, and never more than the cache."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from protos.fedagg.v1 import federation_pb2 as pb
from protos.wire import MAX_CHUNK_BYTES
from server.config.durability import Durability
from server.errors import OffsetOutOfRange, StoreUnavailable, UnknownModelVersion
from server.models import model_catalog
from server.models.model_catalog import ModelCatalog
from server.round.blob_names import model_blob
from server.round.ports import ModelVersion
from server.storage.blobs import BlobStore
from server.storage.redis_client import RedisClient
from server.storage.redis_store import RedisRoundStore

TASK: Final = "digits"


class CountingBlobs(BlobStore):
    """Real files; counts how often they are read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), durability=Durability.PROCESS, num_threads=1)
        self.reads = 0

    async def read_range(self, key: str, offset: int, length: int) -> bytes:
        self.reads += 1
        return await super().read_range(key, offset, length)


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[CountingBlobs]:
    found = CountingBlobs(tmp_path)
    yield found
    found.close()


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisRoundStore]:
    client = RedisClient(redis_url)
    yield RedisRoundStore(client)
    await client.close()


def content(version: int, size: int) -> bytes:
    return hashlib.shake_256(str(version).encode()).digest(size)


async def stored(blobs: BlobStore, version: int, size: int) -> ModelVersion:
    data = content(version, size)
    sha256 = hashlib.sha256(data).hexdigest()
    await blobs.put(model_blob(TASK, None, sha256), data)
    return ModelVersion(
        version=version,
        parent=None,
        round_number=None,
        sha256=sha256,
        size_bytes=size,
        dim=1,
        created_at_ms=0,
        metrics={},
    )


async def fetched(catalog: ModelCatalog, model: ModelVersion, offset: int = 0) -> bytes:
    """The bytes a device puts together, after checking every chunk's claims."""
    data = b""
    async for message in catalog.stream(TASK, model, offset):
        chunk = pb.ModelChunk.FromString(message)
        assert chunk.offset == offset + len(data)
        assert (chunk.model_version, chunk.total_bytes) == (model.version, model.size_bytes)
        assert chunk.sha256 == model.sha256
        assert 0 < len(chunk.data) <= MAX_CHUNK_BYTES
        data += chunk.data
    return data


@pytest.mark.parametrize("cache_bytes", [0, 64 << 20])
async def test_a_stream_is_the_file_from_any_offset(
    blobs: CountingBlobs, store: RedisRoundStore, cache_bytes: int
) -> None:
    size = 2 * MAX_CHUNK_BYTES + 10
    model = await stored(blobs, 1, size)
    catalog = ModelCatalog(registry=store, rounds=store, blobs=blobs, cache_bytes=cache_bytes)
    for offset in (0, 1, MAX_CHUNK_BYTES, MAX_CHUNK_BYTES + 1, 2 * MAX_CHUNK_BYTES, size - 1, size):
        assert await fetched(catalog, model, offset) == content(1, size)[offset:]
    with pytest.raises(OffsetOutOfRange, match="beyond"):
        await fetched(catalog, model, size + 1)
    assert b"".join([part async for part in catalog.file(TASK, model)]) == content(1, size)


async def test_a_cached_file_is_read_once(blobs: CountingBlobs, store: RedisRoundStore) -> None:
    model = await stored(blobs, 1, 1_000)
    catalog = ModelCatalog(registry=store, rounds=store, blobs=blobs, cache_bytes=10_000)
    for _ in range(3):
        await fetched(catalog, model)
    assert blobs.reads == 1


async def test_the_cache_stays_within_its_bound(
    blobs: CountingBlobs, store: RedisRoundStore
) -> None:
    size, cache_bytes = 100, 1_000
    catalog = ModelCatalog(registry=store, rounds=store, blobs=blobs, cache_bytes=cache_bytes)
    versions = [await stored(blobs, number, size) for number in range(60)]
    for model in versions:
        await fetched(catalog, model)
    hits = 0
    for model in reversed(versions):
        before = blobs.reads
        assert await fetched(catalog, model) == content(model.version, size)
        hits += blobs.reads == before
    assert 1 <= hits <= cache_bytes // size


async def test_what_was_used_last_stays(blobs: CountingBlobs, store: RedisRoundStore) -> None:
    catalog = ModelCatalog(registry=store, rounds=store, blobs=blobs, cache_bytes=2_500)
    old, middle, new = [await stored(blobs, number, 1_000) for number in range(3)]
    for model in (old, middle, old, new):
        await fetched(catalog, model)
    before = blobs.reads
    await fetched(catalog, old)
    assert blobs.reads == before
    await fetched(catalog, middle)
    assert blobs.reads == before + 1


@pytest.mark.parametrize("cache_bytes", [0, 10_000])
async def test_a_file_that_is_gone_is_the_stores_trouble(
    blobs: CountingBlobs, store: RedisRoundStore, cache_bytes: int
) -> None:
    model = await stored(blobs, 1, 1_000)
    await blobs.delete(model_blob(TASK, model.round_number, model.sha256))
    catalog = ModelCatalog(registry=store, rounds=store, blobs=blobs, cache_bytes=cache_bytes)
    with pytest.raises(StoreUnavailable, match="version 1 is missing"):
        await fetched(catalog, model)


async def test_versions_are_remembered_up_to_a_bound(
    blobs: CountingBlobs, store: RedisRoundStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_catalog, "MAX_CACHED_VERSIONS", 1)
    await store.create_task(TASK, model=await stored(blobs, 1, 10), num_rounds=1)
    catalog = ModelCatalog(registry=store, rounds=store, blobs=blobs, cache_bytes=0)
    assert (await catalog.version(TASK, 1)).version == 1
    assert (await catalog.current(TASK)).version == 1
    with pytest.raises(UnknownModelVersion, match="no model version 2"):
        await catalog.version(TASK, 2)
    await store.create_task("other", model=await stored(blobs, 1, 20), num_rounds=1)
    assert (await catalog.version("other", 1)).size_bytes == 20
    assert (await catalog.version(TASK, 1)).size_bytes == 10
