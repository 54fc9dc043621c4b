"""One holder's share, uploaded as often as it takes. Needs the extra `fedagg[shared]`."""

from __future__ import annotations  # ShareHolderAsyncStub exists in the stubs only

import asyncio
from typing import TYPE_CHECKING, Final

from client.errors import ProtocolError, RefusedError, TrainingError
from client.transport.server_messages import error_from_detail
from protos.fedagg.v1 import share_holder_pb2 as pb
from security.errors import SharingError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from client.sharing.direct_payload import DirectPayload
    from client.transport.federation_transport import Traffic
    from client.transport.stall import StallGuard
    from protos.fedagg.v1 import shared_round_pb2 as round_pb
    from protos.fedagg.v1.share_holder_pb2_grpc import ShareHolderAsyncStub

# Larger bodies are streamed.
SMALL_BYTES: Final = 256 * 1024


class HolderUpload:
    """Sends one share; a holder keeps all of it or nothing, so every attempt begins anew.

    Attributes:
        holder: who gets it.
        furthest_bytes: body bytes that the best attempt so far handed to gRPC.
    """

    def __init__(
        self,
        payload: DirectPayload,
        holder: int,
        *,
        stub: ShareHolderAsyncStub,
        traffic: Traffic,
    ) -> None:
        self.holder = holder
        self.furthest_bytes = 0
        self._payload = payload
        self._start = payload.start(holder)
        self._stub = stub
        self._traffic = traffic
        self._is_begun = False
        self._broken: SharingError | None = None

    async def attempt(
        self, guard: StallGuard, *, timeout_s: float | None
    ) -> round_pb.SignedStatement:
        """Send the share; return the receipt, unchecked.

        Raises:
            grpc.aio.AioRpcError: if the call failed.
            RefusedError: if the holder does not take the share.
            ProtocolError: if the answer is none.
            TrainingError: if the update has changed since it was sealed.
        """
        if self._start.body_bytes <= SMALL_BYTES:
            body = b"".join(await asyncio.to_thread(list, self._payload.body(self.holder)))
            return await self._whole(body, timeout_s)
        if self._is_begun:
            stored = await self._receipt_if_stored(timeout_s)
            if stored is not None:
                return stored
            guard.moved()
        self._is_begun = True
        try:
            return await self._stub.StoreShare(self._parts(guard), timeout=timeout_s)
        except asyncio.CancelledError:
            # gRPC cancels a call whose messages end in an error, and forgets the error.
            if self._broken is not None:
                raise TrainingError(f"the update cannot be sent: {self._broken}") from self._broken
            raise

    async def _receipt_if_stored(self, timeout_s: float | None) -> round_pb.SignedStatement | None:
        """Ask for the receipt that a broken attempt may have lost.

        A holder answers what it has already before it looks at the body, and refuses a share
        without one. To stream the body and be answered in the middle could lose the answer again.
        """
        try:
            return await self._whole(b"", timeout_s)
        except RefusedError:
            return None  # the attempt that follows tells why, where it is not for the body

    async def _whole(self, body: bytes, timeout_s: float | None) -> round_pb.SignedStatement:
        share = pb.InlineShare(start=self._start, body=body)
        self._count(len(self._start.frame) + len(body))
        answer = await self._stub.StoreShares(
            pb.StoreSharesRequest(shares=[share]), timeout=timeout_s
        )
        if len(answer.outcomes) != 1:
            raise ProtocolError(f"holder {self.holder} gave {len(answer.outcomes)} outcomes for 1")
        (outcome,) = answer.outcomes
        match outcome.WhichOneof("outcome"):
            case "receipt":
                return outcome.receipt
            case "error":
                raise error_from_detail(outcome.error)
            case None:
                raise ProtocolError(f"holder {self.holder} gave no outcome")

    async def _parts(self, guard: StallGuard) -> AsyncIterator[pb.StoreShareRequest]:
        yield pb.StoreShareRequest(start=self._start)
        self._count(len(self._start.frame))
        body, sent = self._payload.body(self.holder), 0
        while True:
            try:
                # Making a part costs milliseconds, which the event loop does not have.
                data = await asyncio.to_thread(next, body, None)
            except SharingError as error:
                self._broken = error
                raise
            guard.moved()
            if data is None:
                return
            self._count(len(data))
            yield pb.StoreShareRequest(data=data)
            sent += len(data)
            self.furthest_bytes = max(self.furthest_bytes, sent)

    def _count(self, num_bytes: int) -> None:
        self._traffic.bytes_up += num_bytes
