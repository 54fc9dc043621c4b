"""How many uploads one device, and all of them, may have under way."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from protos.fedagg.v1 import federation_pb2 as pb
from server.config import LimitsConfig
from server.config.durability import Durability
from server.errors import Overloaded
from server.intake.uploads import STREAMS_PER_DEVICE, Uploads
from server.processes.thread_pool import Workers
from server.round.ports import Submission
from server.storage.blobs import BlobStore
from server.task.payload_format import DenseFormat
from tests.server.task.payloads import PAYLOAD, submission

FORMAT = DenseFormat(dim=5)


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[BlobStore]:
    with closing(BlobStore(str(tmp_path), durability=Durability.PROCESS)) as store:
        yield store


class Held:
    """Uploads whose payload comes once it may."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads
        self._may_come = asyncio.Event()
        self._begun: list[asyncio.Task[None]] = []

    async def begin(self, one: Submission) -> None:
        """Start an upload; return when it waits for its payload."""
        reads = asyncio.Event()

        async def messages() -> AsyncIterator[bytes]:
            reads.set()
            await self._may_come.wait()
            yield pb.SubmitUpdateRequest(data=PAYLOAD).SerializeToString()

        receiving = self._uploads.receive(messages(), one, payload_format=FORMAT, offset=0)
        self._begun.append(asyncio.create_task(receiving))
        await reads.wait()

    async def finish(self) -> None:
        """Let all of them end."""
        self._may_come.set()
        await asyncio.gather(*self._begun)


async def nothing() -> AsyncIterator[bytes]:
    """Bring no message."""
    none: tuple[bytes, ...] = ()
    for message in none:
        yield message


async def test_a_device_has_no_more_uploads_under_way_than_it_may(blobs: BlobStore) -> None:
    with closing(Workers("uploads", threads=1)) as workers:
        uploads = Uploads(blobs=blobs, workers=workers, limits=LimitsConfig())
        held = Held(uploads)
        for _ in range(STREAMS_PER_DEVICE):
            await held.begin(submission())
        with pytest.raises(Overloaded, match="uploads are under way"):
            await uploads.receive(nothing(), submission(), payload_format=FORMAT, offset=0)
        await held.finish()
        again = Held(uploads)
        await again.begin(submission())
        await again.finish()
