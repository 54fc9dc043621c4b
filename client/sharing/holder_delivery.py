"""Hands every share holder its share of one update. Needs the extra `fedagg[shared]`.

All holders are served at the same time, each as often as it takes. The update counts only if
enough of them have their shares, and in rounds that freeze what all reachable holders have, only
if all of these do: so every one is tried, and one that does not answer is waited for, but not for
ever. Nothing that a holder answers is believed before its signature is checked.
"""

from __future__ import annotations  # ShareHolderAsyncStub exists in the stubs only

import asyncio
import contextlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import grpc

from client.config import RetryPolicy
from client.errors import (
    ErrorReason,
    FedaggError,
    ProtocolError,
    RefusedError,
    RoundDeadlineError,
    ServiceUnavailableError,
    TransportError,
)
from client.sharing.holder_upload import HolderUpload
from client.transport.connection import CHANNEL_OPTIONS
from client.transport.retry import Retrier
from client.transport.server_messages import error_from_rpc
from client.transport.stall import StallGuard
from protos.fedagg.v1.share_holder_pb2_grpc import ShareHolderStub
from security.errors import SharedRoundError
from security.shared_round.keys.signing import verify_statement
from security.shared_round.opening.statements import read_receipt

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from client.round_encoding import DeliveryContext
    from client.sharing.direct_payload import DirectPayload
    from protos.fedagg.v1 import shared_round_pb2 as round_pb
    from protos.fedagg.v1.share_holder_pb2_grpc import ShareHolderAsyncStub
    from security.shared_round.terms.committee import Committee
    from security.shared_round.terms.parameters import RoundParameters

# Holders that do not know the round yet are told of it by the coordinator, at the same time as the
# device; likewise of keys that they still have to exchange.
_NOT_YET: Final = frozenset({ErrorReason.UNKNOWN_ROUND, ErrorReason.KEYS_MISSING})
# As for servers, but a holder that comes back is looked for at every try.
_CHANNEL_OPTIONS: Final = (
    *CHANNEL_OPTIONS[:2],
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
# Of the time that a round has left, for what comes after the delivery.
_RESERVED_SHARE: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderCalls:
    """How a device calls share holders.

    Attributes:
        committee: the holders, with their addresses.
        device_id: who sends.
        credentials: of TLS; None: without it.
        retry: backoff of every call.
        patience_s: how long a holder without progress is waited for once it is not needed.
        call_timeout_s: as in the client's configuration, likewise the next.
        stall_timeout_s: a stream in which nothing moves this long is broken off.
    """

    committee: Committee
    device_id: str
    credentials: grpc.ChannelCredentials | None
    retry: RetryPolicy
    patience_s: float
    call_timeout_s: float
    stall_timeout_s: float


class HolderDelivery:
    """The delivery of one update; run it once.

    Attributes:
        receipts: what holders signed so far, by holder.
    """

    def __init__(
        self,
        calls: HolderCalls,
        params: RoundParameters,
        payload: DirectPayload,
        context: DeliveryContext,
    ) -> None:
        self.receipts: dict[int, round_pb.SignedStatement] = {}
        self._calls = calls
        self._params = params
        self._payload = payload
        self._context = context
        self._failures: dict[int, FedaggError] = {}
        left_s = context.deadline_at - context.runtime.clock()
        reserve_s = min(calls.call_timeout_s, max(0.0, left_s) * _RESERVED_SHARE)
        self._deadline_at = context.deadline_at - reserve_s
        self._stall_s = min(calls.stall_timeout_s, max(0.001, left_s * _RESERVED_SHARE))
        self._patience_s = min(calls.patience_s, max(0.001, left_s * _RESERVED_SHARE))

    async def run(self) -> None:
        """Hand out the shares.

        Returns once every holder has its share or is given up, and at least the round's quorum of
        them has.

        Raises:
            FedaggError: why fewer have: RoundDeadlineError where the round left no time, else
                what one of the others answered, or that it did not. Nothing is lost then: an
                update that the server was not told of does not count.
        """
        async with _stubs(self._calls) as stubs:
            uploads = {
                holder: HolderUpload(
                    self._payload, holder, stub=stub, traffic=self._context.traffic
                )
                for holder, stub in stubs.items()
            }
            policy = self._calls.retry
            patient = replace(policy, total_s=min(policy.total_s, self._patience_s))
            await asyncio.gather(*(self._store(upload, patient) for upload in uploads.values()))
            again = [uploads[h] for h, failure in self._failures.items() if failure.retryable]
            if len(again) >= self._num_missing > 0:
                await self._store_until_quorum(again)
        if self._num_missing > 0:
            raise self._failure()

    @property
    def _num_missing(self) -> int:
        """How many receipts are missing for a quorum."""
        return self._params.quorum - len(self.receipts)

    async def _store_until_quorum(self, uploads: Iterable[HolderUpload]) -> None:
        """Try again, now for as long as any call of the client, until enough have their shares."""
        waiting = {
            asyncio.create_task(self._store(upload, self._calls.retry)) for upload in uploads
        }
        try:
            while waiting and self._num_missing > 0:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _store(self, upload: HolderUpload, policy: RetryPolicy) -> None:
        """Store one share, and note the receipt or why there is none."""
        context = self._context
        retrier = Retrier(policy, context.runtime, on_retry=context.on_retry)
        try:
            self.receipts[upload.holder] = await retrier.run(
                lambda: self._attempt(upload),
                deadline_at=self._deadline_at,
                progress=lambda: upload.furthest_bytes,
            )
        except FedaggError as error:
            self._failures[upload.holder] = error
        else:
            self._failures.pop(upload.holder, None)

    async def _attempt(self, upload: HolderUpload) -> round_pb.SignedStatement:
        left_s = max(0.0, self._deadline_at - self._context.runtime.clock())
        timeout_s = None if math.isinf(left_s) else left_s
        try:
            async with StallGuard(self._stall_s) as guard:
                signed = await upload.attempt(guard, timeout_s=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _told(error_from_rpc(error)) from error
        except RefusedError as error:
            raise _told(error) from error
        self._check(upload.holder, signed)
        return signed

    def _check(self, holder: int, signed: round_pb.SignedStatement) -> None:
        """Raise ProtocolError unless the holder signed that it has this share."""
        try:
            statement = verify_statement(
                signed, committee=self._calls.committee, params_sha256=self._params.sha256
            )
            receipt = read_receipt(statement)
        except SharedRoundError as error:
            raise ProtocolError(f"the receipt of holder {holder} is none: {error}") from error
        stated = (statement.holder, receipt.device_id, receipt.header_sha256)
        if stated != (holder, self._calls.device_id, self._payload.header_sha256):
            raise ProtocolError(f"the receipt of holder {holder} is for another share")

    def _failure(self) -> FedaggError:
        """Return what stands for all that went wrong."""
        failures = [self._failures[holder] for holder in sorted(self._failures)]
        for failure in failures:
            if isinstance(failure, RoundDeadlineError):
                return failure
        final = [failure for failure in failures if not failure.retryable]
        may_come = self._params.holders - len(final)
        return (
            final[0]
            if may_come < self._params.quorum
            else next(failure for failure in failures if failure.retryable)
        )


def _told(error: FedaggError) -> FedaggError:
    """Return what a holder's answer means here."""
    match error:
        case RefusedError(reason=reason) if reason in _NOT_YET:
            return ServiceUnavailableError(reason, str(error), retry_after_s=error.retry_after_s)
        case RefusedError(reason=ErrorReason.TRUNCATED_STREAM):
            return TransportError(str(error))  # too slow, or broken off on the way
        case _:
            return error


@contextlib.asynccontextmanager
async def _stubs(calls: HolderCalls) -> AsyncIterator[dict[int, ShareHolderAsyncStub]]:
    """Connect to every holder until the block ends."""
    channels = {
        holder.index: (
            grpc.aio.insecure_channel(holder.address, options=_CHANNEL_OPTIONS)
            if calls.credentials is None
            else grpc.aio.secure_channel(
                holder.address, calls.credentials, options=_CHANNEL_OPTIONS
            )
        )
        for holder in calls.committee.holders
    }
    try:
        yield {holder: ShareHolderStub(channel) for holder, channel in channels.items()}
    finally:
        await asyncio.gather(*(channel.close() for channel in channels.values()))
