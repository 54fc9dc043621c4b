"""The door of a share holder: who may call what, and how much a call may say.

Judged before anything is read of the call, and its size before it is parsed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Final, cast

import grpc
from google.protobuf.message import DecodeError, Message

from protos.fedagg.v1 import share_holder_pb2 as pb
from protos.wire import MAX_HOLDER_MESSAGE_BYTES
from security.secret_sharing.threshold import MAX_HOLDERS
from security.shared_round.terms.parameter_facts import Checks
from server.config.holder_config import HolderConfig, PolicyConfig
from server.errors import MalformedRequest
from server.wire.identity import PeerIdentity
from server.wire.pace import too_slow

if TYPE_CHECKING:  # generic in the stubs only
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
    Parse = Callable[[bytes], Message]
    Call = Callable[[Any, Any], Any]

# What a device may call as well as a coordinator.
OPEN_METHODS: Final = frozenset({"Describe", "StoreShare", "StoreShares"})
MAX_DATA_BYTES: Final = 2 << 20

_SMALL_BYTES: Final = 64 << 10  # digests, parameters, and a statement of each holder
_KEYS_BYTES: Final = 1 << 20  # of a whole committee
_MEMBER_BYTES: Final = 320  # a device id, a digest, and what the encoding adds
_POSITION_BYTES: Final = 8  # of a member in a sum, a sum of its own at the worst
_WORD_BYTES: Final = 8


class Gate:
    """Stands before every method of one holder. For one event loop."""

    def __init__(self, config: HolderConfig) -> None:
        self.peers = peers_of(config)
        self._stall_s = config.limits.stream_stall_s
        self._limits = request_limits(config.policy)

    @property
    def max_request_bytes(self) -> int:
        """The largest message that any method takes."""
        return max(self._limits.values())

    def guarded(self, handler: Handler, method: str) -> Handler:
        """Return the handler behind the gate.

        Every method takes a stream then, which looks the same on the wire: gRPC would read the one
        message of the others before it asks us.
        """
        name = method.rpartition("/")[2]
        most, parse = self._limits[name], cast("Parse", handler.request_deserializer)
        # The stubs declare the synchronous call types only.
        inner = cast("Call", handler.unary_unary or handler.stream_unary or handler.unary_stream)
        admit = self.peers.check_any if name in OPEN_METHODS else self.peers.check_gateway

        async def single(messages: AsyncIterator[bytes], context: Context) -> Any:  # noqa: ANN401
            admit(context)
            return await inner(await self._only(messages, parse, most), context)

        async def streamed(messages: AsyncIterator[bytes], context: Context) -> Any:  # noqa: ANN401
            admit(context)
            return await inner(_parsed(messages, parse, most), context)

        async def streaming(messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
            admit(context)
            async for response in inner(await self._only(messages, parse, most), context):
                yield response

        answer = handler.response_serializer
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(cast("Call", streaming), None, answer)
        call = cast("Call", streamed if handler.request_streaming else single)
        return grpc.stream_unary_rpc_method_handler(call, None, answer)

    async def _only(self, messages: AsyncIterator[bytes], parse: Parse, most: int) -> Message:
        """Read the one message of a call."""
        try:
            async with asyncio.timeout(self._stall_s):
                data = await anext(messages, None)
        except TimeoutError as error:
            raise too_slow("no request arrived in time") from error
        if data is None:
            msg = "the call must hold a request"
            raise MalformedRequest(msg)
        return _parse(data, parse, most)


def peers_of(config: HolderConfig) -> PeerIdentity:
    """Return what compares a caller with its certificate, where it must show one."""
    tls = config.tls
    return PeerIdentity(required=tls.proves_callers, gateways=tls.coordinators)


def request_limits(policy: PolicyConfig) -> dict[str, int]:
    """Bound the bytes of one message, by method: as many as the policy's largest round needs."""
    members = policy.max_members
    pairs = members * (members - 1) // 2 if Checks.DISTANCES in policy.checks else 0
    # Openings tell the tests of every group of members, and blame those of every member.
    words = 2 * members + pairs + 2 * members * policy.max_wrap_tests
    evidence = _SMALL_BYTES + MAX_HOLDERS * words * _WORD_BYTES
    share = MAX_DATA_BYTES + _SMALL_BYTES
    large = {
        "AcceptKeys": _KEYS_BYTES,
        "StoreShare": share,
        "StoreShares": share,
        "Freeze": _SMALL_BYTES + members * _MEMBER_BYTES,
        "OpenChecks": evidence,
        "OpenBlame": evidence,
        "Commit": evidence,
        "ReleaseSum": _SMALL_BYTES + members * _POSITION_BYTES,
    }
    methods = pb.DESCRIPTOR.services_by_name["ShareHolder"].methods
    return {
        method.name: min(MAX_HOLDER_MESSAGE_BYTES, large.get(method.name, _SMALL_BYTES))
        for method in methods
    }


async def _parsed(
    messages: AsyncIterator[bytes], parse: Parse, most: int
) -> AsyncIterator[Message]:
    async for data in messages:
        yield _parse(data, parse, most)


def _parse(data: bytes, parse: Parse, most: int) -> Message:
    if len(data) > most:
        msg = f"a message of {len(data)} bytes must be at most {most}"
        raise MalformedRequest(msg)
    try:
        return parse(data)
    except DecodeError as error:
        msg = "the message cannot be read"
        raise MalformedRequest(msg) from error
