"""Reads what a round is built from: the files of its base version and the payloads."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aggregators.errors import AggregationError
from server.processes.thread_pool import Workers
from server.round.blob_names import model_blob, payload_blob, state_blob
from server.round.candidate import BaseVersion
from server.round.plain_source import Payload, StoredUpdates
from server.round.ports import BlobNotFound, Contribution, ModelRegistry
from server.storage.blobs import BlobStore
from updates.compression_plan import CompressionPlan


class DamagedFile(AggregationError):
    """A stored file has not the bytes that its version was published with."""


class StoredRounds:
    """The files behind rounds, open or replayed.

    Args:
        registry: knows the versions.
        blobs: holds the files.
        workers: where files are mapped.
    """

    def __init__(self, *, registry: ModelRegistry, blobs: BlobStore, workers: Workers) -> None:
        self._registry = registry
        self._blobs = blobs
        self._workers = workers

    async def model(self, task: str, version: int) -> bytes:
        """Return the model file of a version, without its state.

        Raises:
            BlobNotFound, DamagedFile: as `base` does.
        """
        found = await self._registry.model(task, version)
        files = await self.files(task, found.round_number, sha256=found.sha256, state_sha256="")
        return files.model

    async def base(self, task: str, version: int) -> BaseVersion:
        """Return the files of a version.

        Raises:
            BlobNotFound: if one is gone.
            DamagedFile: if one has other bytes than were published.
        """
        found = await self._registry.model(task, version)
        return await self.files(
            task, found.round_number, sha256=found.sha256, state_sha256=found.state_sha256
        )

    async def files(
        self, task: str, round_number: int | None, *, sha256: str, state_sha256: str
    ) -> BaseVersion:
        """Return the files of a version or candidate that a round made; None: of the initial model.

        Raises:
            BlobNotFound: if one is gone.
            DamagedFile: if one has other bytes than were stored under its name.
        """
        model = await self._blobs.get(model_blob(task, round_number, sha256))
        await self._workers.run(_require_sha256, model, sha256, "model")
        state = None
        if state_sha256:
            state = await self._blobs.get(state_blob(task, round_number, state_sha256))
            await self._workers.run(_require_sha256, state, state_sha256, "aggregator state")
        return BaseVersion(model=model, state=state)

    async def updates(
        self,
        task: str,
        round_number: int,
        *,
        contributions: Sequence[Contribution],
        inline_payloads: Sequence[bytes],
        compression: CompressionPlan | None,
    ) -> StoredUpdates:
        """Join payloads that are at hand with those that lie in files.

        Args:
            task: name of the task.
            round_number: of the round.
            contributions: admitted updates.
            inline_payloads: of those that are `inline`, in their order.
            compression: of the round.

        Raises:
            BlobNotFound: if a file is gone.
        """
        inline = iter(inline_payloads)
        payloads: list[Payload] = [
            next(inline) if each.inline else await self._file(task, round_number, each)
            for each in contributions
        ]
        return StoredUpdates(
            contributions=contributions, payloads=payloads, compression=compression
        )

    async def _file(self, task: str, round_number: int, contribution: Contribution) -> Payload:
        key = payload_blob(
            task,
            round_number,
            device_id=contribution.device_id,
            submission_id=contribution.submission_id,
            digest=contribution.digest,
        )
        path = self._blobs.local_path(key)
        if path is None:
            return await self._blobs.get(key)
        return await self._workers.run(_map_file, path)


def _require_sha256(data: bytes, sha256: str, what: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        msg = f"the {what} file is damaged: its SHA-256 is {found}, {sha256} was stored"
        raise DamagedFile(msg)


def _map_file(path: Path) -> memoryview:
    """Map a payload: pages come as the kernel reads them and go when memory is short."""
    try:
        return memoryview(np.memmap(path, dtype=np.uint8, mode="r").data)
    except FileNotFoundError as error:
        msg = f"no payload at {path.name}"
        raise BlobNotFound(msg) from error
    except ValueError as error:  # an empty file cannot be mapped, and no update is empty
        msg = f"the payload at {path.name} is damaged: {error}"
        raise DamagedFile(msg) from error
