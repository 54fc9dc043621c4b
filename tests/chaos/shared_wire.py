"""The network before each share holder: it loses, repeats, delays, kills, lies and writes down.

Coordinators and the adversary call a wire's port; the wire calls the real holder over gRPC. It sees
every byte that ever leaves the holder, also what never reaches anybody.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from protos.fedagg.v1 import share_holder_pb2 as pb
from protos.fedagg.v1 import shared_round_pb2 as round_pb

SERVICE: Final = "/fedagg.v1.ShareHolder/"
_GONE: Final = (grpc.StatusCode.UNAVAILABLE, "the connection broke", ())
# Calls whose answer is one signed statement.
_STATEMENTS: Final = frozenset(
    {"StoreShare", "Freeze", "RevealCoin", "OpenChecks", "OpenBlame", "Commit"}
)

Messages = list[bytes]
Refusal = tuple[grpc.StatusCode, str, Sequence[tuple[str, Any]]]
Heard = Callable[[int, round_pb.SignedStatement], None]


class WireFaultKind(Enum):
    """What happens to a call."""

    LOSE_REQUEST = "lose_request"
    LOSE_ANSWER = "lose_answer"
    REPEAT = "repeat"  # it arrives twice, at the same time
    DELAY = "delay"  # the caller is told that it is lost; it arrives later
    KILL_BEFORE = "kill_before"
    KILL_DURING = "kill_during"
    KILL_AFTER = "kill_after"


@dataclass(frozen=True, slots=True, kw_only=True)
class WireFault:
    """A fault at the `call`-th call of a holder from now on, from 0."""

    holder: int
    kind: WireFaultKind
    call: int = 0


class Refused(Exception):
    """The holder ended the call with a status."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal[1])
        self.refusal = refusal


class Wire:
    """One holder's network.

    Args:
        holder: index of the holder.
        kill: ends the holder without letting it finish.
        heard: told of every statement that left the holder.
    """

    def __init__(self, holder: int, *, kill: Callable[[], Awaitable[None]], heard: Heard) -> None:
        self.lie: Callable[[str, Messages, Messages], Messages] | None = None
        self._holder = holder
        self._kill = kill
        self._heard = heard
        self._faults: list[tuple[int, WireFaultKind]] = []
        self._delayed: deque[tuple[str, Messages]] = deque()
        self._channel: grpc.aio.Channel | None = None
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((_AnyCall(self._serve),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    async def start(self) -> None:
        await self._server.start()

    async def close(self) -> None:
        await self.disconnect()
        await self._server.stop(None)

    async def connect(self, address: str) -> None:
        """The holder answers here now."""
        await self.disconnect()
        self._channel = grpc.aio.insecure_channel(address)

    async def disconnect(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def arm(self, faults: Sequence[WireFault]) -> None:
        """Forget the faults there were and wait for these."""
        self._faults = sorted(
            ((fault.call, fault.kind) for fault in faults if fault.holder == self._holder),
            key=lambda fault: fault[0],
        )

    def reset(self) -> None:
        """No faults, no lies, nothing on its way."""
        self._faults.clear()
        self._delayed.clear()
        self.lie = None

    async def deliver(self) -> None:
        """What was delayed arrives, the last one first; nobody waits for the answers."""
        while self._delayed:
            method, messages = self._delayed.pop()
            with suppress(Refused):
                await self.call(method, messages)

    async def call(self, method: str, messages: Messages) -> Messages:
        """Ask the real holder.

        Raises:
            Refused: with the holder's status.
        """
        if self._channel is None:
            raise Refused(_GONE)
        upstream: Any = self._channel.stream_stream(SERVICE + method)
        try:
            answers: Messages = [answer async for answer in upstream(_each(messages), timeout=30)]
        except grpc.aio.AioRpcError as error:
            metadata = tuple(error.trailing_metadata() or ())
            raise Refused((error.code(), error.details() or "", metadata)) from None
        except (asyncio.CancelledError, grpc.aio.UsageError):
            if self._channel is not None:
                raise
            raise Refused(_GONE) from None  # the holder was killed meanwhile
        self._write_down(method, answers)
        return answers

    async def _serve(self, method: str, messages: Messages) -> Messages:
        answers = await self._through_faults(method, messages)
        return answers if self.lie is None else self.lie(method, messages, answers)

    async def _through_faults(  # one branch for each kind
        self, method: str, messages: Messages
    ) -> Messages:
        match self._next_fault():
            case None:
                return await self.call(method, messages)
            case WireFaultKind.REPEAT:
                return await self._call_twice(method, messages)
            case WireFaultKind.DELAY:
                self._delayed.append((method, messages))
            case WireFaultKind.LOSE_ANSWER:
                with suppress(Refused):
                    await self.call(method, messages)
            case WireFaultKind.KILL_BEFORE:
                await self._kill()
            case WireFaultKind.KILL_DURING:
                asked = asyncio.ensure_future(self.call(method, messages))
                await asyncio.sleep(0)
                await self._kill()
                await asyncio.gather(asked, return_exceptions=True)
            case WireFaultKind.KILL_AFTER:
                with suppress(Refused):
                    await self.call(method, messages)
                await self._kill()
            case WireFaultKind.LOSE_REQUEST:
                pass
        raise Refused(_GONE)

    async def _call_twice(self, method: str, messages: Messages) -> Messages:
        twice = (self.call(method, messages), self.call(method, messages))
        outcomes = await asyncio.gather(*twice, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            answers = outcome
        return answers

    def _next_fault(self) -> WireFaultKind | None:
        due = next((kind for call, kind in self._faults if call == 0), None)
        self._faults = [(call - 1, kind) for call, kind in self._faults if call > 0]
        return due

    def _write_down(self, method: str, answers: Messages) -> None:
        for signed in statements_in(method, answers):
            self._heard(self._holder, signed)


def statements_in(method: str, answers: Messages) -> list[round_pb.SignedStatement]:
    """The statements that an answer carries."""
    if method in _STATEMENTS:
        return [round_pb.SignedStatement.FromString(answers[0])]
    if method == "StoreShares":
        outcomes = pb.StoreSharesResponse.FromString(answers[0]).outcomes
        return [each.receipt for each in outcomes if each.WhichOneof("outcome") == "receipt"]
    if method == "ListShares":
        return list(pb.ListSharesResponse.FromString(answers[0]).receipts)
    if method == "ReleaseSum":
        chunks = [pb.SumChunk.FromString(answer) for answer in answers]
        return [chunk.statement for chunk in chunks if chunk.WhichOneof("part") == "statement"]
    return []


def read_statement(signed: round_pb.SignedStatement) -> round_pb.HolderStatement:
    """What was signed; empty where it cannot be read."""
    try:
        return round_pb.HolderStatement.FromString(signed.statement)
    except DecodeError:
        return round_pb.HolderStatement()


class _AnyCall(grpc.GenericRpcHandler):
    """Passes every method on as bytes: on the wire, one message is a stream of one."""

    def __init__(self, serve: Callable[[str, Messages], Awaitable[Messages]]) -> None:
        self._serve = serve

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method.removeprefix(SERVICE)

        async def behave(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            try:
                answers = await self._serve(method, [request async for request in requests])
            except Refused as refused:
                code, details, metadata = refused.refusal
                await context.abort(code, details, tuple(metadata))
            for answer in answers:
                yield answer

        return grpc.stream_stream_rpc_method_handler(behave)


async def _each(messages: Messages) -> AsyncIterator[bytes]:
    for message in messages:
        yield message
