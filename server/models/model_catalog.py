"""Model versions as devices see them: metadata, and the file as a stream of chunks."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Final

from protos.fedagg.v1 import federation_pb2 as pb
from protos.wire import MAX_CHUNK_BYTES
from server.errors import OffsetOutOfRange, StoreUnavailable
from server.round.blob_names import model_blob
from server.round.ports import BlobNotFound, ModelRegistry, ModelVersion, RoundStore
from server.storage.blobs import BlobStore

MAX_CACHED_VERSIONS: Final = 1024


class ModelCatalog:
    """Reads model versions; keeps the newest files ready to send.

    A version never changes, so what is cached never goes stale. Chunks are kept serialized: sending
    a cached model costs no copy in Python.

    Args:
        registry: where versions are listed.
        rounds: tells which one is current.
        blobs: where files are.
        cache_bytes: files kept in memory; larger ones are read chunk by chunk.
    """

    def __init__(
        self, *, registry: ModelRegistry, rounds: RoundStore, blobs: BlobStore, cache_bytes: int
    ) -> None:
        self._registry = registry
        self._rounds = rounds
        self._blobs = blobs
        self._cache_bytes = cache_bytes
        self._versions: OrderedDict[tuple[str, int], ModelVersion] = OrderedDict()
        self._chunks: OrderedDict[tuple[str, int], list[bytes]] = OrderedDict()
        self._cached_bytes = 0
        self._loading = asyncio.Lock()

    async def version(self, task: str, number: int) -> ModelVersion:
        """Return metadata of one version.

        Raises:
            UnknownModelVersion: if there is no such version.
        """
        key = (task, number)
        found = self._versions.get(key)
        if found is None:
            found = await self._registry.model(task, number)
            self._versions[key] = found
            if len(self._versions) > MAX_CACHED_VERSIONS:
                self._versions.popitem(last=False)
        return found

    async def current(self, task: str) -> ModelVersion:
        """Return metadata of the version that new rounds start from."""
        snapshot = await self._rounds.snapshot(task)
        return await self.version(task, snapshot.current_version)

    async def stream(self, task: str, model: ModelVersion, offset: int) -> AsyncIterator[bytes]:
        """Yield serialized `ModelChunk` messages from byte `offset` on.

        Raises:
            OffsetOutOfRange: if the file is shorter.
            StoreUnavailable: if the file cannot be read.
        """
        if offset > model.size_bytes:
            msg = f"offset={offset} lies beyond the file's {model.size_bytes} bytes"
            raise OffsetOutOfRange(msg)
        chunks = await self._cached(task, model)
        first, skip = divmod(offset, MAX_CHUNK_BYTES)
        if chunks is not None and not skip:
            for chunk in chunks[first:]:
                yield chunk
            return
        for start in range(offset, model.size_bytes, MAX_CHUNK_BYTES):
            yield _chunk(model, start, await self._read(task, model, start, MAX_CHUNK_BYTES))

    async def file(self, task: str, model: ModelVersion) -> AsyncIterator[bytes]:
        """Yield the file in parts.

        Raises:
            StoreUnavailable: if it cannot be read.
        """
        for start in range(0, model.size_bytes, MAX_CHUNK_BYTES):
            yield await self._read(task, model, start, MAX_CHUNK_BYTES)

    async def _cached(self, task: str, model: ModelVersion) -> list[bytes] | None:
        if model.size_bytes > self._cache_bytes:
            return None
        key = (task, model.version)
        async with self._loading:  # a thousand devices ask for a new version at once
            if key in self._chunks:
                self._chunks.move_to_end(key)
                return self._chunks[key]
            data = await self._read(task, model, 0, model.size_bytes)
            chunks = [
                _chunk(model, start, data[start : start + MAX_CHUNK_BYTES])
                for start in range(0, len(data), MAX_CHUNK_BYTES)
            ]
            self._chunks[key] = chunks
            self._cached_bytes += sum(map(len, chunks))
            while self._cached_bytes > self._cache_bytes and len(self._chunks) > 1:
                _, dropped = self._chunks.popitem(last=False)
                self._cached_bytes -= sum(map(len, dropped))
            return chunks

    async def _read(self, task: str, model: ModelVersion, start: int, length: int) -> bytes:
        try:
            return await self._blobs.read_range(
                model_blob(task, model.round_number, model.sha256), start, length
            )
        except BlobNotFound as error:
            msg = f"the file of model version {model.version} is missing"
            raise StoreUnavailable(msg) from error


def _chunk(model: ModelVersion, offset: int, data: bytes) -> bytes:
    return pb.ModelChunk(
        model_version=model.version,
        total_bytes=model.size_bytes,
        offset=offset,
        sha256=model.sha256,
        data=data,
    ).SerializeToString()
