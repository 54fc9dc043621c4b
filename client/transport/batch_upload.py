"""Many small updates on one stream: what a gateway sends for its devices."""

from __future__ import annotations  # FederationAsyncStub exists in the stubs only

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc

from client.errors import (
    ErrorReason,
    InvalidUpdateError,
    ProtocolError,
    RefusedError,
    TransportError,
)
from client.transport.messages import Receipt, Submission
from client.transport.server_messages import error_from_detail, inline_update, receipt
from client.transport.stall import StallGuard
from protos.fedagg.v1.federation_pb2 import SubmissionOutcome, SubmitUpdatesRequest
from protos.wire import MAX_BATCH_BYTES, MAX_BATCH_UPDATES

if TYPE_CHECKING:
    from client.transport.tracing import GrpcMetadata
    from protos.fedagg.v1.federation_pb2 import SubmitUpdatesResponse
    from protos.fedagg.v1.federation_pb2_grpc import FederationAsyncStub

# Field tag, batch id and the length prefix of an update, at their longest.
_REQUEST_OVERHEAD_BYTES: Final = 16
_UPDATE_OVERHEAD_BYTES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    request: SubmitUpdatesRequest
    submissions: tuple[Submission, ...]


class BatchUpload:
    """Sends batches and collects their outcomes; a new attempt sends only unanswered batches.

    Attributes:
        sent_bytes: payload bytes handed to gRPC so far, repeated ones included.
    """

    def __init__(self, submissions: Sequence[Submission], *, stall_timeout_s: float) -> None:
        self.sent_bytes = 0
        self._stall_timeout_s = stall_timeout_s
        self._batches = _split(submissions)
        self._outcomes: list[list[Receipt | RefusedError]] = []

    @property
    def answered(self) -> int:
        """Batches whose outcomes are here."""
        return len(self._outcomes)

    async def attempt(
        self, stub: FederationAsyncStub, *, metadata: GrpcMetadata, timeout_s: float | None
    ) -> list[Receipt | RefusedError]:
        """Send the unanswered batches and return the outcomes of all updates, in order.

        Raises:
            TransportError: if the stream ended early or stalled; answered batches are kept.
            grpc.aio.AioRpcError: if the call failed; answered batches are kept.
            ProtocolError: if the answers do not fit the batches.
        """
        if self.answered < len(self._batches):
            await self._exchange(stub, metadata, timeout_s)
        return [outcome for batch in self._outcomes for outcome in batch]

    async def _exchange(
        self, stub: FederationAsyncStub, metadata: GrpcMetadata, timeout_s: float | None
    ) -> None:
        async with StallGuard(self._stall_timeout_s) as guard:
            call = stub.SubmitUpdates(self._requests(guard), metadata=metadata, timeout=timeout_s)
            try:
                async for response in call:
                    guard.moved()
                    self._accept(response)
            except grpc.aio.AioRpcError:
                # The last answer may arrive and the status that follows it may not.
                if self.answered < len(self._batches):
                    raise
            finally:
                call.cancel()
        if self.answered < len(self._batches):
            raise TransportError(f"{self.answered} of {len(self._batches)} batches were answered")

    async def _requests(self, guard: StallGuard) -> AsyncIterator[SubmitUpdatesRequest]:
        for batch in self._batches[self.answered :]:
            guard.moved()
            self.sent_bytes += sum(len(submission.payload) for submission in batch.submissions)
            yield batch.request

    def _accept(self, response: SubmitUpdatesResponse) -> None:
        if self.answered == len(self._batches):
            raise ProtocolError(f"an answer too many, for batch {response.batch_id}")
        batch = self._batches[self.answered]
        answered = (response.batch_id, len(response.outcomes))
        if answered != (batch.request.batch_id, len(batch.submissions)):
            raise ProtocolError(
                f"(batch id, outcomes) {answered} do not answer batch {batch.request.batch_id} "
                f"of {len(batch.submissions)} updates"
            )
        self._outcomes.append(
            [
                _outcome(outcome, submission)
                for outcome, submission in zip(response.outcomes, batch.submissions, strict=True)
            ]
        )


def _outcome(outcome: SubmissionOutcome, submission: Submission) -> Receipt | RefusedError:
    match outcome.WhichOneof("outcome"):
        case "receipt":
            return receipt(outcome.receipt, submission)
        case "error":
            return error_from_detail(outcome.error)
        case None:
            raise ProtocolError(f"no outcome for submission {submission.submission_id}")


def _split(submissions: Sequence[Submission]) -> list[_Batch]:
    batches: list[_Batch] = []
    members: list[Submission] = []
    request = SubmitUpdatesRequest(batch_id=1)
    size = _REQUEST_OVERHEAD_BYTES
    for submission in submissions:
        update = inline_update(submission)
        update_bytes = update.ByteSize() + _UPDATE_OVERHEAD_BYTES
        if update_bytes + _REQUEST_OVERHEAD_BYTES > MAX_BATCH_BYTES:
            raise InvalidUpdateError(
                ErrorReason.UPDATE_TOO_LARGE,
                f"submission {submission.submission_id} does not fit a batch: submit it alone",
            )
        if members and (len(members) == MAX_BATCH_UPDATES or size + update_bytes > MAX_BATCH_BYTES):
            batches.append(_Batch(request=request, submissions=tuple(members)))
            request, members = SubmitUpdatesRequest(batch_id=len(batches) + 1), []
            size = _REQUEST_OVERHEAD_BYTES
        request.updates.append(update)
        members.append(submission)
        size += update_bytes
    if members:
        batches.append(_Batch(request=request, submissions=tuple(members)))
    return batches
