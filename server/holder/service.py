"""The ShareHolder service: what callers ask, off the event loop, one step of a round at a time.

Callers are not believed, also where the gate knows them. Every call may be repeated and gives the
same bytes again; what an answer says is durable.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc

from protos.fedagg.v1 import share_holder_pb2 as pb
from protos.fedagg.v1 import shared_round_pb2 as shared_pb
from protos.fedagg.v1.share_holder_pb2_grpc import ShareHolderServicer
from security.errors import SharedRoundError
from server.config.holder_config import HolderLimitsConfig
from server.errors import MalformedRequest, ServiceError
from server.holder.gate import MAX_DATA_BYTES
from server.holder.metrics import HolderMetrics
from server.holder.refusals import as_service_error
from server.holder.rounds import HolderRounds
from server.holder.shares.intake import Intake, ShareReceipt
from server.holder.shares.share_streams import ShareStreams
from server.holder.shares.streams import StepTurns
from server.holder.statements.keyring import Keyring
from server.holder.statements.noise import NoiseDealer
from server.holder.storage.ledger import ShareRow
from server.holder.storage.membership import HolderSelf
from server.processes.thread_pool import Workers
from server.wire.identity import PeerIdentity
from server.wire.status import error_detail

if TYPE_CHECKING:  # generic in the stubs only
    Context = grpc.aio.ServicerContext[Any, Any]

_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceParts:
    """What the service is made of.

    Attributes:
        peers: whose share a caller may hand in.
        dealer: draws this holder's noise.
        files: threads that check and store shares.
        compute: one thread, for openings, judgements and sums.
    """

    peers: PeerIdentity
    me: HolderSelf
    keyring: Keyring
    intake: Intake
    rounds: HolderRounds
    dealer: NoiseDealer
    files: Workers
    compute: Workers
    limits: HolderLimitsConfig
    metrics: HolderMetrics


class ShareHolderService(ShareHolderServicer):
    """Answers for one holder; for one event loop."""

    def __init__(self, parts: ServiceParts) -> None:
        self._parts = parts
        self._streams = ShareStreams(
            parts.intake, files=parts.files, limits=parts.limits, metrics=parts.metrics
        )
        self._turns = StepTurns(parts.compute)

    async def Describe(  # noqa: N802  # a name of the protocol
        self, request: pb.DescribeRequest, context: Context
    ) -> pb.HolderDescription:
        """Tell who this holder is, and whether it has every key that its committee shares."""
        del request, context
        me = self._parts.me
        return pb.HolderDescription(
            holder=me.index,
            committee_sha256=me.committee.sha256,
            has_keys=self._parts.keyring.is_complete,
        )

    async def DealKeys(  # noqa: N802
        self, request: pb.DealKeysRequest, context: Context
    ) -> pb.DealKeysResponse:
        """Give the keys that this holder deals to the others, sealed to them."""
        del request, context
        return pb.DealKeysResponse(keys=self._parts.keyring.dealt)

    async def AcceptKeys(  # noqa: N802
        self, request: pb.AcceptKeysRequest, context: Context
    ) -> pb.AcceptKeysResponse:
        """Take the keys that others dealt to this holder; those that it has stay."""
        del context
        has_keys = await self._parts.files.run(self._parts.keyring.accept, request.keys)
        return pb.AcceptKeysResponse(has_keys=has_keys)

    async def OpenRound(  # noqa: N802
        self, request: pb.OpenRoundRequest, context: Context
    ) -> pb.OpenRoundResponse:
        """Check a round against the policy and store it; purge those that are outdated."""
        del context
        rounds = self._parts.rounds
        for old in await self._parts.files.run(rounds.outdated):
            await self._turns.run(old, rounds.purge, old)
        digest = await self._parts.files.run(rounds.open, request.parameters)
        return pb.OpenRoundResponse(params_sha256=digest)

    async def DealNoise(  # noqa: N802
        self, request: pb.DealNoiseRequest, context: Context
    ) -> AsyncIterator[pb.NoiseChunk]:
        """Stream this holder's noise of a round, sealed as a device's update is."""
        del context
        digest = request.params_sha256
        path = await self._turns.run(digest, self._parts.dealer.deal, digest)
        self._parts.metrics.noise_dealt_total.inc()
        # Opened before the first answer: a purge meanwhile cannot take the file away.
        file = await self._parts.files.run(path.open, "rb")
        try:
            total = await self._parts.files.run(file.seek, 0, os.SEEK_END)
            await self._parts.files.run(file.seek, 0)
            while data := await self._parts.files.run(file.read, _CHUNK_BYTES):
                yield pb.NoiseChunk(total_bytes=total, data=data)
        finally:
            file.close()

    async def StoreShare(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.StoreShareRequest], context: Context
    ) -> shared_pb.SignedStatement:
        """Take one device's share: a start first, then the body. Durable when answered."""
        check_sender = self._parts.peers.check_submitter(context)
        with self._counted():
            receipt = await self._streams.receive(request_iterator, check_sender)
        self._parts.metrics.shares_stored_total.inc()
        return shared_pb.SignedStatement.FromString(receipt.data)

    async def StoreShares(  # noqa: N802
        self, request: pb.StoreSharesRequest, context: Context
    ) -> pb.StoreSharesResponse:
        """Take many small shares; one receipt or refusal for each, in their order."""
        check_sender = self._parts.peers.check_submitter(context)
        if request.ByteSize() > MAX_DATA_BYTES:
            msg = f"shares of {request.ByteSize()} bytes must be at most {MAX_DATA_BYTES} together"
            raise MalformedRequest(msg)
        outcomes = await self._parts.files.run(self._take_all, request.shares, check_sender)
        return pb.StoreSharesResponse(outcomes=[self._outcome(each) for each in outcomes])

    async def ListShares(  # noqa: N802
        self, request: pb.ListSharesRequest, context: Context
    ) -> pb.ListSharesResponse:
        """List the receipts of everything stored for a round."""
        del context

        def read() -> pb.ListSharesResponse:
            receipts = self._parts.rounds.receipts(request.params_sha256)
            signed = map(shared_pb.SignedStatement.FromString, receipts)
            return pb.ListSharesResponse(receipts=signed)

        return await self._parts.files.run(read)

    async def Freeze(  # noqa: N802
        self, request: pb.FreezeRequest, context: Context
    ) -> shared_pb.SignedStatement:
        """Vote for a set of updates, all of which are stored here."""
        del context
        return await self._step("vote", self._parts.rounds.freeze, request)

    async def LockBox(  # noqa: N802
        self, request: pb.LockBoxRequest, context: Context
    ) -> shared_pb.SignedStatement:
        """Bind the holder to a ballot box, for whose coin alone it will give its pieces."""
        del context
        return await self._step("lock", self._parts.rounds.lock_box, request)

    async def RevealCoin(  # noqa: N802
        self, request: pb.RevealCoinRequest, context: Context
    ) -> shared_pb.SignedStatement:
        """Give the pieces of the coin, where a quorum is bound to the same box."""
        del context
        return await self._step("coin", self._parts.rounds.reveal_coin, request)

    async def OpenChecks(  # noqa: N802
        self, request: pb.OpenChecksRequest, context: Context
    ) -> shared_pb.SignedStatement:
        """Open the shares of what the coin checks: norms, distances, wrap-around tests."""
        del context
        with _timed(self._parts.metrics.openings_seconds.observe):
            return await self._step("openings", self._parts.rounds.open_checks, request)

    async def OpenBlame(  # noqa: N802
        self, request: pb.OpenBlameRequest, context: Context
    ) -> shared_pb.SignedStatement:
        """Open the wrap-around tests of members of groups that are shown to have failed."""
        del context
        return await self._step("blame", self._parts.rounds.open_blame, request)

    async def Commit(  # noqa: N802
        self, request: pb.CommitRequest, context: Context
    ) -> shared_pb.SignedStatement:
        """Derive the selection from the evidence and bind the holder to its sums."""
        del context
        return await self._step("commitment", self._parts.rounds.commit, request)

    async def ReleaseSum(  # noqa: N802
        self, request: pb.ReleaseSumRequest, context: Context
    ) -> AsyncIterator[pb.SumChunk]:
        """Stream the holder's share of the sums that a quorum is bound to."""
        del context
        with _timed(self._parts.metrics.sums_seconds.observe):
            release = self._parts.rounds.release
            released = await self._turns.run(request.params_sha256, release, request)
        self._parts.metrics.statements_total.labels(kind="sum").inc()
        # Opened before the first answer: a purge meanwhile cannot take the file away.
        file = await self._parts.files.run(released.path.open, "rb")
        try:
            yield pb.SumChunk(statement=shared_pb.SignedStatement.FromString(released.statement))
            while data := await self._parts.files.run(file.read, _CHUNK_BYTES):
                yield pb.SumChunk(data=data)
        finally:
            file.close()

    async def Purge(  # noqa: N802
        self, request: pb.PurgeRequest, context: Context
    ) -> pb.PurgeResponse:
        """Delete the round's shares; what was signed stays."""
        del context
        digest = request.params_sha256
        await self._turns.run(digest, self._parts.rounds.purge, digest)
        return pb.PurgeResponse()

    async def _step(
        self,
        kind: str,
        step: Callable[[Any], bytes],
        request: Any,  # noqa: ANN401
    ) -> shared_pb.SignedStatement:
        signed = await self._turns.run(request.params_sha256, step, request)
        self._parts.metrics.statements_total.labels(kind=kind).inc()
        return shared_pb.SignedStatement.FromString(signed)

    def _take_all(
        self, shares: Sequence[pb.InlineShare], check_sender: Callable[[str], None]
    ) -> list[ShareReceipt | ServiceError]:
        """Verify every share of a batch, then store all that passed in one transaction."""
        intake = self._parts.intake
        outcomes = [intake.take(share, check_sender) for share in shares]
        places = [at for at, outcome in enumerate(outcomes) if isinstance(outcome, tuple)]
        rows: list[tuple[bytes, ShareRow]] = [
            outcome for outcome in outcomes if isinstance(outcome, tuple)
        ]
        stored = dict(zip(places, intake.store_all(rows), strict=True)) if rows else {}
        return [
            stored[at] if isinstance(outcome, tuple) else outcome
            for at, outcome in enumerate(outcomes)
        ]

    def _outcome(self, outcome: ShareReceipt | ServiceError) -> pb.ShareOutcome:
        if isinstance(outcome, ServiceError):
            self._parts.metrics.shares_refused_total.labels(reason=outcome.reason).inc()
            return pb.ShareOutcome(error=error_detail(outcome))
        self._parts.metrics.shares_stored_total.inc()
        return pb.ShareOutcome(receipt=shared_pb.SignedStatement.FromString(outcome.data))

    @contextlib.contextmanager
    def _counted(self) -> Any:  # noqa: ANN401  # a context manager
        """Count a refusal by its reason."""
        try:
            yield
        except (ServiceError, SharedRoundError) as error:
            known = error if isinstance(error, ServiceError) else as_service_error(error)
            self._parts.metrics.shares_refused_total.labels(reason=known.reason).inc()
            raise


@contextlib.contextmanager
def _timed(observe: Callable[[float], None]) -> Any:  # noqa: ANN401  # a context manager
    started = time.perf_counter()
    try:
        yield
    finally:
        observe(time.perf_counter() - started)
