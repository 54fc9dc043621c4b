"""One update, uploaded in chunks over as many attempts as the network needs."""

from __future__ import annotations  # FederationAsyncStub exists in the stubs only

import asyncio
from typing import TYPE_CHECKING

from client.transport.server_messages import (
    receipt,
    update_header,
    upload_status,
    upload_status_request,
)
from client.transport.stall import StallGuard
from protos.fedagg.v1.federation_pb2 import SubmitUpdateRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from client.transport.messages import Receipt, Submission
    from client.transport.tracing import GrpcMetadata
    from protos.fedagg.v1.federation_pb2_grpc import FederationAsyncStub


class ChunkedUpload:
    """Sends the payload; after a broken attempt the server says from where to go on.

    Attributes:
        stored_bytes: what the server held at the start of the last attempt.
        sent_bytes: payload bytes handed to gRPC so far, repeated ones included.
    """

    def __init__(self, submission: Submission, *, chunk_bytes: int, stall_timeout_s: float) -> None:
        self.stored_bytes = 0
        self.sent_bytes = 0
        self._submission = submission
        self._chunk_bytes = chunk_bytes
        self._stall_timeout_s = stall_timeout_s
        self._begun = False

    async def ask_status(
        self, stub: FederationAsyncStub, *, metadata: GrpcMetadata, timeout_s: float
    ) -> Receipt | None:
        """Learn where to resume; return the receipt when the update is accepted already."""
        answer = await stub.GetUploadStatus(
            upload_status_request(self._submission), metadata=metadata, timeout=timeout_s
        )
        status = upload_status(answer, self._submission)
        self.stored_bytes = status.stored_bytes
        return status.receipt

    @property
    def is_begun(self) -> bool:
        """Whether an attempt was made, so that the server may hold a part."""
        return self._begun

    async def attempt(
        self, stub: FederationAsyncStub, *, metadata: GrpcMetadata, timeout_s: float | None
    ) -> Receipt:
        """Send what the server lacks and return its receipt.

        Raises:
            TransportError: if nothing moved for too long.
            grpc.aio.AioRpcError: if the call failed.
            ProtocolError: if the receipt is another submission's.
        """
        self._begun = True
        async with StallGuard(self._stall_timeout_s) as guard:
            answer = await stub.SubmitUpdate(
                self._parts(guard), metadata=metadata, timeout=timeout_s
            )
        return receipt(answer, self._submission)

    async def _parts(self, guard: StallGuard) -> AsyncIterator[SubmitUpdateRequest]:
        # gRPC asks for the next part only when the last one found room in its window, so every
        # part asked for is a sign of life.
        payload = self._submission.payload
        yield SubmitUpdateRequest(header=update_header(self._submission, offset=self.stored_bytes))
        for start in range(self.stored_bytes, len(payload), self._chunk_bytes):
            guard.moved()
            part = slice(start, start + self._chunk_bytes)
            if isinstance(payload, bytes):
                data = payload[part]
            else:  # making it costs milliseconds, which the event loop does not have
                data = await asyncio.to_thread(payload.__getitem__, part)
            self.sent_bytes += len(data)
            yield SubmitUpdateRequest(data=data)
        guard.moved()
