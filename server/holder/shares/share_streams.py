"""One share in many messages: judged by its first, read in a bounded place and time."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from protos.fedagg.v1 import share_holder_pb2 as pb
from server.config.holder_config import HolderLimitsConfig
from server.errors import MalformedRequest, TruncatedStream
from server.holder.gate import MAX_DATA_BYTES
from server.holder.metrics import HolderMetrics
from server.holder.shares.intake import IncomingShare, Intake, OfferedShare, ShareReceipt
from server.holder.shares.streams import StreamPlaces
from server.processes.thread_pool import Workers
from server.wire.pace import Pace, too_slow


class ShareStreams:
    """Reads the streams of StoreShare. For one event loop.

    Args:
        intake: verifies and stores.
        files: threads for that.
        limits: how many streams are read at once, how many may wait, and how slow one may be.
        metrics: told of what comes.
    """

    def __init__(
        self,
        intake: Intake,
        *,
        files: Workers,
        limits: HolderLimitsConfig,
        metrics: HolderMetrics,
    ) -> None:
        self._intake = intake
        self._files = files
        self._limits = limits
        self._metrics = metrics
        self._places = StreamPlaces(limits)

    async def receive(
        self, parts: AsyncIterator[pb.StoreShareRequest], check_sender: Callable[[str], None]
    ) -> ShareReceipt:
        """Verify what the stream begins with; only what may become a share waits for a place.

        Args:
            parts: the stream.
            check_sender: raises where the caller may not hand in a device's share.

        Raises:
            SharedRoundError, ServiceError: why the share is refused.
        """
        first = await self._first(parts)
        if first is None or first.WhichOneof("part") != "start":
            msg = "a stream must begin with a start"
            raise MalformedRequest(msg)
        offered = await self._files.run(self._intake.verify, first.start, check_sender)
        if isinstance(offered, ShareReceipt):
            return offered
        async with self._places.of(offered.device_id):
            return await self._receive_share(parts, offered)

    async def _receive_share(
        self, parts: AsyncIterator[pb.StoreShareRequest], offered: OfferedShare
    ) -> ShareReceipt:
        run, intake = self._files.run, self._intake
        begun = await self._begin(offered)
        try:
            await self._receive_body(parts, begun, offered.start.body_bytes)
            row = await run(begun.finish)
        finally:
            # Shielded: a caller that is gone for good must not leave the file behind.
            await asyncio.shield(run(begun.__exit__, None, None, None))
        return await run(intake.store, offered.start.params_sha256, row)

    async def _begin(self, offered: OfferedShare) -> IncomingShare:
        """Begin a share; one whose caller goes away meanwhile is discarded when it has begun."""
        beginning = asyncio.ensure_future(self._files.run(self._intake.begin, offered))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(_discard)
            raise

    async def _receive_body(
        self, parts: AsyncIterator[pb.StoreShareRequest], share: IncomingShare, body_bytes: int
    ) -> None:
        limits, received = self._limits, 0
        async with Pace(
            stall_s=limits.stream_stall_s,
            num_bytes=body_bytes,
            min_bytes_per_s=limits.stream_min_bytes_per_s,
        ) as pace:
            async for part in parts:
                if received == body_bytes:
                    msg = f"the stream must end after {body_bytes} bytes of data"
                    raise MalformedRequest(msg)
                if part.WhichOneof("part") != "data" or not 1 <= len(part.data) <= MAX_DATA_BYTES:
                    msg = f"a part after the first must be 1 to {MAX_DATA_BYTES} bytes of data"
                    raise MalformedRequest(msg)
                await _to_its_end(self._files.run(share.feed, part.data))
                received += len(part.data)
                self._metrics.share_bytes_total.inc(len(part.data))
                pace.keep()
        if received < body_bytes:
            msg = f"the stream ended after {received} of {body_bytes} bytes"
            raise TruncatedStream(msg)

    async def _first(
        self, parts: AsyncIterator[pb.StoreShareRequest]
    ) -> pb.StoreShareRequest | None:
        try:
            async with asyncio.timeout(self._limits.stream_stall_s):
                return await anext(parts, None)
        except TimeoutError as error:
            raise too_slow("no start arrived in time") from error


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Wait for work in a thread, also when cancelled: what it works on must not be closed yet."""
    running = asyncio.ensure_future(work)
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


def _discard(beginning: asyncio.Future[IncomingShare]) -> None:
    """Let go of a share that nobody waits for."""
    if beginning.cancelled() or beginning.exception() is not None:
        return
    beginning.result().__exit__(None, None, None)
