"""The calls of the federation service, each repeated until it is answered or hopeless.

Every call may be repeated at any time and then gives the same answer; this module relies on it
after every lost response.
"""

from __future__ import annotations  # FederationAsyncStub exists in the stubs only

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import grpc

from client.errors import (
    ErrorReason,
    InvalidRequestError,
    ModelIntegrityError,
    TransportError,
)
from client.runtime import Runtime
from client.transport.batch_upload import BatchUpload
from client.transport.chunked_upload import ChunkedUpload
from client.transport.connection import ServerPool
from client.transport.model_download import ModelDownload
from client.transport.retry import Retrier, Retry
from client.transport.server_messages import (
    check_in_answer,
    check_in_request,
    error_from_rpc,
    inline_update,
    progress_request,
    receipt,
    receipt_if_accepted,
    round_status,
    upload_status_request,
)
from client.transport.tracing import trace_metadata

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from client.config import ClientConfig
    from client.errors import RefusedError
    from client.transport.messages import (
        Assignment,
        ModelRequest,
        Offer,
        Progress,
        Receipt,
        RetryLater,
        RoundStatus,
        Submission,
        SubmissionKey,
    )
    from protos.fedagg.v1.federation_pb2_grpc import FederationAsyncStub

T = TypeVar("T")

# A resumed upload whose offset is refused learns the right one and tries again; the bound keeps
# a server that never agrees from holding the device.
_MAX_OFFSET_CORRECTIONS: Final = 3


@dataclass(slots=True)
class Traffic:
    """Payload and model bytes moved since the start, repeated ones included."""

    bytes_up: int = 0
    bytes_down: int = 0


class FederationTransport:
    """Typed, retried calls over a pool of servers. Used from one event loop.

    A transport of its own pool closes it; a shared pool stays open.
    """

    def __init__(
        self,
        config: ClientConfig,
        *,
        runtime: Runtime | None = None,
        pool: ServerPool | None = None,
        on_retry: Callable[[Retry], None] | None = None,
    ) -> None:
        self.traffic = Traffic()
        self._config = config
        self._runtime = runtime or Runtime()
        self._owns_pool = pool is None
        self._pool = pool or ServerPool(config)
        self._retrier = Retrier(config.retry, self._runtime, on_retry=on_retry)

    async def close(self) -> None:
        """Close the channels, unless they are shared."""
        if self._owns_pool:
            await self._pool.close()

    async def check_in(self, offer: Offer) -> Assignment | RetryLater:
        """Offer the device; every retry carries the offer's own id."""
        request = check_in_request(offer)
        timeout_s = offer.max_wait_s + self._config.call_timeout_s

        async def call(stub: FederationAsyncStub) -> Assignment | RetryLater:
            return check_in_answer(
                await stub.CheckIn(request, metadata=trace_metadata(), timeout=timeout_s)
            )

        return await self._retrier.run(lambda: self._attempt(call))

    async def fetch_model(self, model: ModelRequest, *, deadline_at: float = math.inf) -> bytes:
        """Download a model file, resuming broken streams, and verify size and SHA-256."""
        if model.total_bytes > self._config.max_model_bytes:
            raise ModelIntegrityError(
                f"a model of {model.total_bytes} bytes exceeds "
                f"max_model_bytes={self._config.max_model_bytes}"
            )
        download = ModelDownload(model, stall_timeout_s=self._config.stall_timeout_s)

        async def call(stub: FederationAsyncStub) -> bytes:
            before = download.received_bytes
            try:
                return await download.attempt(
                    stub, metadata=trace_metadata(), timeout_s=self._remaining_s(deadline_at)
                )
            finally:
                self.traffic.bytes_down += download.received_bytes - before

        return await self._retrier.run(
            lambda: self._attempt(call),
            deadline_at=deadline_at,
            progress=lambda: download.received_bytes,
        )

    async def submit(self, submission: Submission, *, deadline_at: float = math.inf) -> Receipt:
        """Send one update, in one message or in chunks by its size, and return the receipt."""
        if len(submission.payload) <= self._config.inline_max_bytes:
            return await self._submit_inline(submission, deadline_at)
        return await self._submit_chunked(submission, deadline_at)

    async def submit_batch(
        self, submissions: Sequence[Submission], *, deadline_at: float = math.inf
    ) -> list[Receipt | RefusedError]:
        """Send many small updates on one stream; one outcome for each, in order.

        After a broken stream only the unanswered ones are sent again.

        Raises:
            InvalidUpdateError: if one update alone exceeds what a batch may hold (1 MiB).
        """
        batch = BatchUpload(submissions, stall_timeout_s=self._config.stall_timeout_s)

        async def call(stub: FederationAsyncStub) -> list[Receipt | RefusedError]:
            before = batch.sent_bytes
            try:
                return await batch.attempt(
                    stub, metadata=trace_metadata(), timeout_s=self._remaining_s(deadline_at)
                )
            finally:
                self.traffic.bytes_up += batch.sent_bytes - before

        return await self._retrier.run(
            lambda: self._attempt(call),
            deadline_at=deadline_at,
            progress=lambda: batch.answered,
        )

    async def accepted_receipt(
        self, key: SubmissionKey, *, deadline_at: float = math.inf
    ) -> Receipt | None:
        """Ask whether a submission was accepted, whose payload need not be at hand any more."""
        request = upload_status_request(key)

        async def call(stub: FederationAsyncStub) -> Receipt | None:
            answer = await stub.GetUploadStatus(
                request, metadata=trace_metadata(), timeout=self._short_timeout_s(deadline_at)
            )
            return receipt_if_accepted(answer, key)

        return await self._retrier.run(lambda: self._attempt(call), deadline_at=deadline_at)

    async def report_progress(self, progress: Progress) -> RoundStatus:
        """Tell how training goes; one attempt only, because the next report supersedes it."""

        async def call(stub: FederationAsyncStub) -> RoundStatus:
            return round_status(
                await stub.ReportProgress(
                    progress_request(progress),
                    metadata=trace_metadata(),
                    timeout=self._config.call_timeout_s,
                )
            )

        return await self._attempt(call)

    async def _submit_inline(self, submission: Submission, deadline_at: float) -> Receipt:
        request = inline_update(submission)

        async def call(stub: FederationAsyncStub) -> Receipt:
            self.traffic.bytes_up += len(submission.payload)
            answer = await stub.SubmitInlineUpdate(
                request, metadata=trace_metadata(), timeout=self._short_timeout_s(deadline_at)
            )
            return receipt(answer, submission)

        return await self._retrier.run(lambda: self._attempt(call), deadline_at=deadline_at)

    async def _submit_chunked(self, submission: Submission, deadline_at: float) -> Receipt:
        upload = ChunkedUpload(
            submission,
            chunk_bytes=self._config.chunk_bytes,
            stall_timeout_s=self._config.stall_timeout_s,
        )

        async def call(stub: FederationAsyncStub) -> Receipt:
            if upload.is_begun:
                accepted = await upload.ask_status(
                    stub,
                    metadata=trace_metadata(),
                    timeout_s=self._short_timeout_s(deadline_at),
                )
                if accepted:
                    return accepted
            before = upload.sent_bytes
            try:
                return await upload.attempt(
                    stub, metadata=trace_metadata(), timeout_s=self._remaining_s(deadline_at)
                )
            finally:
                self.traffic.bytes_up += upload.sent_bytes - before

        return await self._retrier.run(
            lambda: self._correcting_offset(call),
            deadline_at=deadline_at,
            progress=lambda: upload.stored_bytes,
        )

    async def _correcting_offset(self, call: Callable[[FederationAsyncStub], Awaitable[T]]) -> T:
        for _ in range(_MAX_OFFSET_CORRECTIONS):
            try:
                return await self._attempt(call)
            except InvalidRequestError as error:
                # The stored part shrank after it was asked for: the next attempt asks again and
                # so never sends the same request twice.
                if error.reason is not ErrorReason.OFFSET_OUT_OF_RANGE:
                    raise
        return await self._attempt(call)

    async def _attempt(self, call: Callable[[FederationAsyncStub], Awaitable[T]]) -> T:
        endpoint = self._pool.current()
        try:
            return await call(endpoint.stub)
        except grpc.aio.AioRpcError as error:
            failure = error_from_rpc(error)
            if isinstance(failure, TransportError):
                self._pool.move_on(endpoint)
            raise failure from error
        except TransportError:
            self._pool.move_on(endpoint)
            raise

    def _remaining_s(self, deadline_at: float) -> float | None:
        """Return the time limit of a transfer; a stalled one ends earlier by its guard."""
        remaining = deadline_at - self._runtime.clock()
        return None if math.isinf(remaining) else max(remaining, 0.0)

    def _short_timeout_s(self, deadline_at: float) -> float:
        return max(min(self._config.call_timeout_s, deadline_at - self._runtime.clock()), 0.0)
