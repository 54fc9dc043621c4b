"""Reads what a round is built from: the files of its base version and the payloads."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from server.kernels import Workers
from server.round.candidate import BaseVersion
from server.round.plain_source import Payload, StoredUpdates
from server.storage.blobs import BlobStore
from server.storage.keys import model_blob, payload_blob, state_blob
from server.storage.ports import BlobNotFound, Contribution, RoundStore
from updates.plan import CompressionPlan


class StoredRounds:
    """The files behind rounds, open or replayed.

    Args:
        store: knows the versions.
        blobs: holds the files.
        workers: where files are mapped.
    """

    def __init__(self, *, store: RoundStore, blobs: BlobStore, workers: Workers) -> None:
        self._store = store
        self._blobs = blobs
        self._workers = workers

    async def model(self, task: str, version: int) -> bytes:
        """The model file of a version.

        Raises:
            BlobNotFound: if it is gone.
        """
        found = await self._store.model(task, version)
        return await self._blobs.get(model_blob(task, found.sha256))

    async def base(self, task: str, version: int) -> BaseVersion:
        """The files of a version.

        Raises:
            BlobNotFound: if one is gone.
        """
        found = await self._store.model(task, version)
        state = None
        if found.state_sha256:
            state = await self._blobs.get(state_blob(task, found.state_sha256))
        return BaseVersion(model=await self._blobs.get(model_blob(task, found.sha256)), state=state)

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


def _map_file(path: Path) -> memoryview:
    """Map a payload: pages come as the kernel reads them and go when memory is short."""
    try:
        return memoryview(np.memmap(path, dtype=np.uint8, mode="r").data)
    except FileNotFoundError as error:
        msg = f"no payload at {path.name}"
        raise BlobNotFound(msg) from error
