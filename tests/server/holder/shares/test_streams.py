"""How much of a holder's time and places callers can take."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from protos.fedagg.v1 import share_holder_pb2 as pb
from security.shared_round.terms.parameter_facts import ShareFormat
from security.shared_round.terms.parameters import RoundParameters
from server.errors import Overloaded
from server.holder.shares.streams import MAX_WAITING_STEPS, STREAMS_PER_DEVICE, StepTurns
from server.processes.thread_pool import Workers
from tests.server.holder.rig import Bundle, Rig, reason_of, round_parameters

HOLDER: Final = 2  # it has a body
PIECE: Final = 64
BYTES_METRIC: Final = "federated_holder_share_bytes_total"


@asynccontextmanager
async def rig_of(folder: Path, **limits: Any) -> AsyncIterator[tuple[Rig, RoundParameters]]:
    rig = Rig(folder, 2, 3)
    rig.limits = {name.replace("_", "-"): value for name, value in limits.items()}
    async with rig:
        params = round_parameters(rig.committee, format=ShareFormat.SHAMIR_SEEDED)
        await rig.open(params)
        yield rig, params


async def refused(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return reason_of(error.value)


class Hanging:
    """A stream that sends a piece of its body and then waits to be told."""

    def __init__(self, rig: Rig, bundle: Bundle) -> None:
        self._parts = bundle.stream(HOLDER, piece_bytes=PIECE)
        self._go_on = asyncio.Event()
        self._rig = rig
        self.call = rig.stubs[HOLDER].StoreShare(self._send())

    async def _send(self) -> AsyncIterator[pb.StoreShareRequest]:
        for part in self._parts[:2]:
            yield part
        await self._go_on.wait()
        for part in self._parts[2:]:
            yield part

    async def held(self, pieces: int = 1) -> None:
        """Wait until the holder has the first pieces of so many streams."""
        value = self._rig.servers[HOLDER].registry.get_sample_value
        while (value(BYTES_METRIC) or 0) < pieces * PIECE:
            await self._rig.stubs[HOLDER].Describe(pb.DescribeRequest())

    async def finish(self) -> None:
        self._go_on.set()
        await self.call


async def test_what_a_stream_begins_with_is_judged_before_it_gets_a_place(tmp_path: Path) -> None:
    async with rig_of(tmp_path, streams_in_flight=1, streams_queued=0) as (rig, params):
        anna, berta = (Bundle(params, rig.committee, name) for name in ("anna", "berta"))
        first = Hanging(rig, anna)
        await first.held()
        stub = rig.stubs[HOLDER]
        assert await refused(stub.StoreShare(iter(berta.stream(HOLDER)))) == "OVERLOADED"
        forged = berta.stream(HOLDER)
        forged[0].start.header.signature = bytes(64)
        assert await refused(stub.StoreShare(iter(forged))) == "BAD_HEADER_SIGNATURE"
        short = berta.stream(HOLDER)
        short[0].start.body_bytes -= 1
        assert await refused(stub.StoreShare(iter(short))) == "MALFORMED_REQUEST"
        await first.finish()
        await stub.StoreShare(iter(berta.stream(HOLDER)))


async def test_a_device_has_a_few_streams_at_a_time(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as (rig, params):
        anna, berta = (Bundle(params, rig.committee, name) for name in ("anna", "berta"))
        streams = [Hanging(rig, anna) for _ in range(STREAMS_PER_DEVICE)]
        await streams[0].held(len(streams))
        stub = rig.stubs[HOLDER]
        assert await refused(stub.StoreShare(iter(anna.stream(HOLDER)))) == "OVERLOADED"
        await stub.StoreShare(iter(berta.stream(HOLDER)))
        for stream in streams:
            await stream.finish()
        await stub.StoreShare(iter(anna.stream(HOLDER)))


async def test_a_silent_stream_loses_its_place(tmp_path: Path) -> None:
    limits = {"streams_in_flight": 1, "streams_queued": 0, "stream_stall_s": 0.1}
    async with rig_of(tmp_path, **limits) as (rig, params):
        anna, berta = (Bundle(params, rig.committee, name) for name in ("anna", "berta"))
        silent = Hanging(rig, anna)
        assert await refused(silent.call) == "OVERLOADED"
        await rig.stubs[HOLDER].StoreShare(iter(berta.stream(HOLDER)))


async def test_a_call_that_says_nothing_is_ended(tmp_path: Path) -> None:
    async with rig_of(tmp_path, stream_stall_s=0.1) as (rig, _):

        async def nothing() -> AsyncIterator[pb.StoreShareRequest]:
            await asyncio.Event().wait()
            yield pb.StoreShareRequest()

        assert await refused(rig.stubs[HOLDER].StoreShare(nothing())) == "OVERLOADED"
        async with grpc.aio.insecure_channel(rig.servers[HOLDER].address) as channel:
            purge: Any = channel.stream_unary("/fedagg.v1.ShareHolder/Purge")
            assert await refused(purge(nothing())) == "OVERLOADED"


async def test_a_stream_that_is_slow_over_all_is_ended_though_it_is_never_silent(
    tmp_path: Path,
) -> None:
    limits = {"stream_stall_s": 0.3, "stream_min_bytes_per_s": 1 << 30}
    async with rig_of(tmp_path, **limits) as (rig, _):
        params = round_parameters(
            rig.committee, round=2, dim=40_000, format=ShareFormat.SHAMIR_SEEDED
        )
        await rig.open(params)
        parts = Bundle(params, rig.committee, "anna").stream(HOLDER, piece_bytes=1)
        # A byte a message: the whole would take far longer.
        assert await refused(rig.stubs[HOLDER].StoreShare(iter(parts))) == "OVERLOADED"


async def test_few_steps_of_one_round_wait() -> None:
    workers = Workers("steps", threads=2)
    turns, go_on, began = StepTurns(workers), threading.Event(), threading.Event()

    def step(number: int) -> int:
        began.set()
        go_on.wait()
        return number

    try:
        calls = [
            asyncio.ensure_future(turns.run(b"round", step, number))
            for number in range(MAX_WAITING_STEPS)
        ]
        await asyncio.to_thread(began.wait)
        with pytest.raises(Overloaded):
            await turns.run(b"round", step, -1)
        assert await turns.run(b"another", str, 5) == "5"
        # Who goes away leaves the step behind, and it counts.
        calls[-1].cancel()
        with pytest.raises(Overloaded):
            await turns.run(b"round", step, -1)
        go_on.set()
        assert await asyncio.gather(*calls[:-1]) == list(range(MAX_WAITING_STEPS - 1))
        assert await turns.run(b"round", step, 7) == 7
    finally:
        go_on.set()
        workers.close()
