"""Calls of one share holder.

Every call may be repeated and gives the same bytes again, so a call that timed out is simply made
once more. Nothing that a holder answers is believed before its signature is checked.
"""

from __future__ import annotations  # ShareHolderAsyncStub exists in the stubs only

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import grpc
from google.protobuf.message import DecodeError

from protos.fedagg.v1 import share_holder_pb2 as pb
from protos.fedagg.v1 import shared_round_pb2 as round_pb
from protos.fedagg.v1.errors_pb2 import ErrorDetail, ErrorReason
from protos.fedagg.v1.share_holder_pb2_grpc import ShareHolderStub
from protos.wire import ERROR_METADATA_KEY, MAX_HOLDER_MESSAGE_BYTES

if TYPE_CHECKING:
    from protos.fedagg.v1.share_holder_pb2_grpc import ShareHolderAsyncStub

# A stream's time: as for any call, and what its bytes may take at this rate.
MIN_BYTES_PER_S: Final = 1 << 20

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_HOLDER_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_HOLDER_MESSAGE_BYTES),
    # A holder that comes back is found soon: the default waits up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A machine that is gone answers no ping; without one a call would wait for its whole time.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.bdp_probe", 0),
)

# What a holder says of the call, as opposed to codes that tell only that there was no answer.
_REFUSALS: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)

_END: Final = pb.NoiseChunk()  # of a stream; known by being this very object

T = TypeVar("T")


class HolderError(Exception):
    """A holder did not do what it was asked."""


class HolderAway(HolderError):
    """It did not answer, or not now; ask again later."""


class HolderRefused(HolderError):
    """It answered that it will not.

    Args:
        reason: name of an `ErrorReason`.
        message: the holder's words, for a person.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class HolderClient:
    """One share holder, by gRPC. Close it when done.

    Args:
        index: which holder of the committee.
        address: host:port.
        credentials: of TLS; None: without it.
        timeout_s: how long any call may take; the bytes of a stream get time of their own.
    """

    def __init__(
        self,
        index: int,
        *,
        address: str,
        credentials: grpc.ChannelCredentials | None,
        timeout_s: float,
    ) -> None:
        self.index = index
        self._timeout_s = timeout_s
        self._channel = (
            grpc.aio.insecure_channel(address, options=_OPTIONS)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
        )
        self._stub: ShareHolderAsyncStub = ShareHolderStub(self._channel)

    async def close(self) -> None:
        """Close the connection; calls under way fail."""
        await self._channel.close()

    async def describe(self) -> pb.HolderDescription:
        """Ask who the holder is, and whether it has its keys.

        Raises:
            HolderAway: if it does not answer, as in every call.
            HolderRefused: if it refuses, as in every call.
        """
        return await _answer(self._stub.Describe(pb.DescribeRequest(), timeout=self._timeout_s))

    async def deal_keys(self) -> Sequence[pb.SealedKey]:
        """Fetch the keys that the holder deals, sealed to the others of its committee."""
        call = self._stub.DealKeys(pb.DealKeysRequest(), timeout=self._timeout_s)
        return (await _answer(call)).keys

    async def accept_keys(self, keys: Sequence[pb.SealedKey]) -> bool:
        """Hand over dealt keys; return whether the holder has all of its keys now."""
        request = pb.AcceptKeysRequest(keys=keys)
        return (await _answer(self._stub.AcceptKeys(request, timeout=self._timeout_s))).has_keys

    async def open_round(self, parameters: bytes) -> None:
        """Announce a round by its serialized RoundParameters."""
        request = pb.OpenRoundRequest(parameters=parameters)
        await _answer(self._stub.OpenRound(request, timeout=self._timeout_s))

    async def deal_noise(self, params_sha256: bytes, *, max_bytes: int) -> AsyncIterator[bytes]:
        """Yield the holder's sealed noise, piece by piece.

        Raises:
            HolderError: as for any call; HolderAway if it has more bytes, or fewer than it says.
        """
        request = pb.DealNoiseRequest(params_sha256=params_sha256)
        timeout_s = self._timeout_s + max_bytes / MIN_BYTES_PER_S
        chunks = aiter(self._stub.DealNoise(request, timeout=timeout_s))
        received = total = 0
        while (chunk := await _answer(anext(chunks, _END))) is not _END:
            received, total = received + len(chunk.data), chunk.total_bytes
            if received > max_bytes:
                break
            yield chunk.data
        if received != total or not received:
            msg = f"the noise has {received} bytes of {total}, at most {max_bytes}"
            raise HolderAway(msg)

    async def store_share(
        self, start: pb.ShareStart, body: AsyncIterator[bytes]
    ) -> round_pb.SignedStatement:
        """Stream one share; the body's chunks are asked for as the holder takes them.

        Raises:
            HolderError: as for any call.
            Exception: what `body` raised.
        """
        broken: list[Exception] = []

        async def messages() -> AsyncIterator[pb.StoreShareRequest]:
            yield pb.StoreShareRequest(start=start)
            try:
                async for data in body:
                    yield pb.StoreShareRequest(data=data)
            except Exception as error:
                broken.append(error)
                raise

        timeout_s = self._timeout_s + start.body_bytes / MIN_BYTES_PER_S
        try:
            return await _answer(self._stub.StoreShare(messages(), timeout=timeout_s))
        except (asyncio.CancelledError, HolderError):
            # gRPC cancels a call whose messages end in an error, and forgets the error.
            if broken:
                raise broken[0] from None
            raise

    async def store_shares(self, shares: Sequence[pb.InlineShare]) -> Sequence[pb.ShareOutcome]:
        """Store small shares; one outcome for each, in order."""
        request = pb.StoreSharesRequest(shares=shares)
        answer = await _answer(self._stub.StoreShares(request, timeout=self._timeout_s))
        if len(answer.outcomes) != len(shares):
            msg = f"{len(answer.outcomes)} outcomes for {len(shares)} shares"
            raise HolderAway(msg)
        return answer.outcomes

    async def list_shares(self, params_sha256: bytes) -> Sequence[round_pb.SignedStatement]:
        """Fetch the receipts of everything that the holder stores for a round."""
        request = pb.ListSharesRequest(params_sha256=params_sha256)
        return (await _answer(self._stub.ListShares(request, timeout=self._timeout_s))).receipts

    async def freeze(self, request: pb.FreezeRequest) -> round_pb.SignedStatement:
        """Ask for the vote for a set of updates; a `Vote` comes back."""
        return await _answer(self._stub.Freeze(request, timeout=self._timeout_s))

    async def lock_box(self, request: pb.LockBoxRequest) -> round_pb.SignedStatement:
        """Ask the holder to bind itself to a ballot box; a `BoxLock` comes back."""
        return await _answer(self._stub.LockBox(request, timeout=self._timeout_s))

    async def reveal_coin(self, request: pb.RevealCoinRequest) -> round_pb.SignedStatement:
        """Ask for the pieces of the coin, given a quorum of locks; a `CoinShare` comes back."""
        return await _answer(self._stub.RevealCoin(request, timeout=self._timeout_s))

    async def open_checks(self, request: pb.OpenChecksRequest) -> round_pb.SignedStatement:
        """Ask for the shares that the coin's checks open; `Openings` come back."""
        return await _answer(self._stub.OpenChecks(request, timeout=self._timeout_s))

    async def open_blame(self, request: pb.OpenBlameRequest) -> round_pb.SignedStatement:
        """Ask for the wrap-around tests of single suspects; `BlameOpenings` come back."""
        return await _answer(self._stub.OpenBlame(request, timeout=self._timeout_s))

    async def commit(self, request: pb.CommitRequest) -> round_pb.SignedStatement:
        """Ask the holder to bind itself to a selection; a `Commitment` comes back."""
        return await _answer(self._stub.Commit(request, timeout=self._timeout_s))

    async def release_sum(
        self, request: pb.ReleaseSumRequest, *, num_bytes: int
    ) -> tuple[round_pb.SignedStatement, bytes]:
        """Fetch the holder's share of the sums, `num_bytes` in all."""
        timeout_s = self._timeout_s + num_bytes / MIN_BYTES_PER_S
        return await _answer(self._released(request, num_bytes, timeout_s))

    async def purge(self, params_sha256: bytes) -> None:
        """Have the holder delete a round's shares; what it signed stays."""
        request = pb.PurgeRequest(params_sha256=params_sha256)
        await _answer(self._stub.Purge(request, timeout=self._timeout_s))

    async def _released(
        self, request: pb.ReleaseSumRequest, num_bytes: int, timeout_s: float
    ) -> tuple[round_pb.SignedStatement, bytes]:
        statement: round_pb.SignedStatement | None = None
        data = bytearray()
        async for chunk in self._stub.ReleaseSum(request, timeout=timeout_s):
            if _is_unreadable(chunk):
                break
            if chunk.WhichOneof("part") == "statement" and statement is None:
                statement = chunk.statement
            else:
                data += chunk.data
            if len(data) > num_bytes:
                break
        if statement is None or len(data) != num_bytes:
            msg = f"the share of the sums has {len(data)} bytes, {num_bytes} were asked for"
            raise HolderAway(msg)
        return statement, bytes(data)


def refusal_of(detail: ErrorDetail) -> HolderRefused:
    """Return what an outcome within an answer tells."""
    return HolderRefused(_reason_name(detail.reason), detail.message)


async def _answer(call: Awaitable[T]) -> T:
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        detail = _detail(error)
        if error.code() in _REFUSALS and detail is not None:
            raise refusal_of(detail) from error
        msg = f"{error.code().name}: {error.details()}"
        raise HolderAway(msg) from error
    if _is_unreadable(answer):
        msg = "the answer cannot be read"
        raise HolderAway(msg)
    return answer


def _is_unreadable(answer: object) -> bool:
    """Tell whether gRPC could not parse what came: it then gives None, and no error."""
    return answer is None


def _detail(error: grpc.aio.AioRpcError) -> ErrorDetail | None:
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_METADATA_KEY and isinstance(value, bytes):
            try:
                return ErrorDetail.FromString(value)
            except DecodeError:
                return None
    return None


def _reason_name(reason: int) -> str:
    try:
        return ErrorReason.Name(ErrorReason.ValueType(reason))
    except ValueError:
        return "ERROR_REASON_UNSPECIFIED"
