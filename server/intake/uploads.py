"""One update in many messages: a bounded window, a private part, and resumption.

Whoever sends a stream must first show a header that would be admitted; only then does it wait for a
place in the window. A place is held for a bounded time: a stream that falls silent, or is slower
than the least rate, loses it and may resume.
"""

import asyncio
import itertools
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

from protos.fedagg.v1 import federation_pb2 as pb
from server import errors
from server.config import LimitsConfig
from server.errors import MalformedRequest, OffsetOutOfRange, Overloaded, ServiceError
from server.intake.upload_sink import UploadSink, check_inline
from server.processes.thread_pool import Workers
from server.round.blob_names import payload_blob
from server.round.ports import BlobNotFound, Submission
from server.storage.blobs import BlobStore
from server.task.payload_format import PayloadFormat
from server.wire.device_messages import upload_part
from server.wire.pace import OVERLOAD_RETRY_MS, Pace, too_slow

WRITE_BYTES: Final = 2 << 20  # handed to a thread at once: larger saves hops, smaller saves memory
MESSAGE_COST_BYTES: Final = 4096  # what a held message weighs at least, however little it brings
STREAMS_PER_DEVICE: Final = 2  # a device that lost its connection may be back before we notice


class Uploads:
    """Receives payloads in chunks into the blob store.

    Args:
        blobs: where payloads go.
        workers: threads for decoding and file work.
        limits: how many uploads are read at once, how many may wait, and how slow one may be.
    """

    def __init__(self, *, blobs: BlobStore, workers: Workers, limits: LimitsConfig) -> None:
        self._blobs = blobs
        self._workers = workers
        self._limits = limits
        self._window = asyncio.Semaphore(limits.uploads_in_flight)
        self._streams: Counter[tuple[str, str]] = Counter()
        self._process = uuid.uuid4().hex
        self._attempts = itertools.count()

    async def header(self, messages: AsyncIterator[bytes]) -> pb.UpdateHeader:
        """Read the first message, which must hold the header."""
        try:
            async with asyncio.timeout(self._limits.upload_stall_s):
                message = await anext(messages, b"")
        except TimeoutError as error:
            raise too_slow("no header arrived in time") from error
        part = upload_part(message)
        if isinstance(part, pb.UpdateHeader):
            return part
        msg = "the first message must hold the header"
        raise MalformedRequest(msg)

    async def check(self, submission: Submission, payload_format: PayloadFormat) -> None:
        """Check a payload that came in one message; in a thread where that may take long.

        Raises:
            ServiceError: the subclass that says what is wrong.
        """
        if payload_format.is_quick:
            # Some microseconds: a thread would cost more than the work.
            check_inline(submission, payload_format)
        else:
            await self._workers.run(check_inline, submission, payload_format)

    async def receive(
        self,
        messages: AsyncIterator[bytes],
        submission: Submission,
        *,
        payload_format: PayloadFormat,
        offset: int,
    ) -> None:
        """Store the payload that follows the header; durable under its key when this returns.

        The stream is not read while the window is full, so flow control holds its bytes back at
        the device.

        Raises:
            InvalidInput: if the bytes are wrong; nothing of them stays.
            Overloaded: if too many uploads wait, or this one is too slow; what arrived is kept.
        """
        device = (submission.task, submission.device_id)
        capacity = self._limits.uploads_in_flight + self._limits.uploads_queued
        if self._streams.total() >= capacity or self._streams[device] >= STREAMS_PER_DEVICE:
            msg = f"{self._streams.total()} uploads are under way"
            raise Overloaded(msg, retry_after_ms=OVERLOAD_RETRY_MS)
        self._streams[device] += 1
        try:
            async with self._window:
                await self._store(messages, submission, payload_format, offset)
        finally:
            self._streams[device] -= 1
            if not self._streams[device]:
                del self._streams[device]

    async def stored_bytes(self, submission: Submission) -> int:
        """Return bytes kept of an upload that broke off."""
        part = await self._blobs.stored_part(blob_key(submission))
        return part[1] if part else 0

    async def _store(
        self,
        messages: AsyncIterator[bytes],
        submission: Submission,
        payload_format: PayloadFormat,
        offset: int,
    ) -> None:
        key = blob_key(submission)
        sink = UploadSink(
            submission,
            payload_format=payload_format,
            writer=self._blobs.open_part(key, part=self._part_name()),
        )
        resumed = await self._part_of(key, offset) if offset else ""
        replaced = False
        try:
            if resumed:
                await self._feed_part(sink, key, part=resumed, length=offset)
                replaced = True
            rest = await self._pump(messages, sink, num_bytes=submission.payload_bytes - offset)
            await self._workers.run(sink.commit, rest)
        except ServiceError as error:
            # A stream that simply ended early may be resumed; wrong bytes may not.
            keep = isinstance(error, errors.TruncatedStream | errors.Unavailable)
            replaced = replaced or not keep
            await self._workers.run(sink.abort, keep=keep)
            raise
        except BaseException:
            await asyncio.shield(self._workers.run(sink.abort, keep=True))
            raise
        finally:
            if resumed and replaced:
                await asyncio.shield(self._blobs.delete_part(key, part=resumed))

    def _part_name(self) -> str:
        """Make a name no other attempt has, in any process."""
        return f"{self._process}-{next(self._attempts)}"

    async def _part_of(self, key: str, offset: int) -> str:
        """Find the stored part that reaches up to `offset`."""
        stored = await self._blobs.stored_part(key)
        if stored is None or stored[1] < offset:
            msg = f"offset={offset} lies beyond the {stored[1] if stored else 0} bytes stored"
            raise OffsetOutOfRange(msg)
        return stored[0]

    async def _feed_part(self, sink: UploadSink, key: str, *, part: str, length: int) -> None:
        """Read the stored bytes through the same checks as if they arrived now."""
        try:
            await self._workers.run(
                lambda: sink.feed(self._blobs.iter_part(key, part=part, length=length))
            )
        except BlobNotFound as error:
            msg = "the stored part is gone: start again at offset 0"
            raise OffsetOutOfRange(msg) from error

    async def _pump(
        self, messages: AsyncIterator[bytes], sink: UploadSink, *, num_bytes: int
    ) -> list[memoryview]:
        """Move chunks from the stream to the sink; the next arrive while a thread writes these.

        They are checked here, while they are in the processor's cache: to check them in the thread
        would pass the interpreter's lock back and forth, at several times the cost of the checks.

        Returns:
            The last chunks, checked but not yet written.
        """
        chunks: list[memoryview] = []
        held = 0
        writing: asyncio.Future[None] | None = None
        try:
            async with Pace(
                stall_s=self._limits.upload_stall_s,
                num_bytes=num_bytes,
                min_bytes_per_s=self._limits.upload_min_bytes_per_s,
            ) as pace:
                async for message in messages:
                    pace.keep()
                    part = _data_of(message)
                    sink.check(part)
                    chunks.append(part)
                    held += max(len(part), MESSAGE_COST_BYTES)
                    if held >= WRITE_BYTES:
                        if writing is not None:
                            await asyncio.shield(writing)
                        writing = asyncio.ensure_future(self._workers.run(sink.write, chunks))
                        chunks, held = [], 0
            if writing is not None:
                await asyncio.shield(writing)
        except BaseException:
            await self._settle(sink, writing, chunks)
            raise
        return chunks

    async def _settle(
        self, sink: UploadSink, writing: asyncio.Future[None] | None, chunks: list[memoryview]
    ) -> None:
        """Wait until the sink is idle, as it must be before it is aborted, whatever happened.

        What arrived before a stream broke is kept, or a device that is cut off often would never
        get on.
        """
        if writing is not None:
            await asyncio.shield(writing)
        if chunks:
            await asyncio.shield(self._workers.run(sink.write, chunks))


def _data_of(message: bytes) -> memoryview:
    part = upload_part(message)
    if isinstance(part, pb.UpdateHeader):
        msg = "only the first message may hold a header"
        raise MalformedRequest(msg)
    if not part:
        msg = "a data message must hold at least 1 byte"
        raise MalformedRequest(msg)
    return part


def blob_key(submission: Submission) -> str:
    """Return the blob key of a streamed payload."""
    return payload_blob(
        submission.task,
        submission.round_number,
        device_id=submission.device_id,
        submission_id=submission.submission_id,
        digest=submission.digest,
    )
