"""The process that plays devices: asynchronous, with requests and answers as plain bytes.

Reads a plan from standard input, connects, says "ready", waits for "go", and answers with a result;
one line each. Answers are checked after the measurement, not during it. Connections stay open until
standard input ends: to close them, and to end, takes processor time that whoever measures would see
as the server's.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import grpc
import uvloop

from benchmarks.service import messages
from benchmarks.service.deployment import device_name
from benchmarks.service.load import LoadKind, LoadPlan, LoadResult
from protos.fedagg.v1 import federation_pb2 as pb
from server.processes.process_end import end_process

SERVICE: Final = "/fedagg.v1.Federation/"
MAX_MESSAGE_BYTES: Final = 4 << 20
MAX_ERRORS: Final = 5
BATCHES_IN_FLIGHT: Final = 2  # on one stream
CONNECT_TIMEOUT_S: Final = 60.0
_OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),  # one connection per channel
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)
Channel = grpc.aio.Channel

if TYPE_CHECKING:  # generic in the stubs only
    UnaryUnary = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
    UnaryStream = grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
    StreamUnary = grpc.aio.StreamUnaryMultiCallable[bytes, bytes]
    StreamStream = grpc.aio.StreamStreamMultiCallable[bytes, bytes]


@dataclass(slots=True)
class Record:
    """What came back."""

    started_at: list[float] = field(default_factory=list)
    latency_s: list[float] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def note(self, started: float, answer: bytes) -> None:
        """Note an answer and how long it took."""
        self.started_at.append(started)
        self.latency_s.append(time.perf_counter() - started)
        self.answers.append(answer)

    def fail(self, error: grpc.aio.AioRpcError) -> None:
        """Note a refusal, unless there are many already."""
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(f"{error.code().name}: {error.details()}")


Worker = Callable[[Channel, int, Record], Coroutine[Any, Any, None]]


async def main() -> None:
    """Carry out one plan."""
    plan = LoadPlan.from_json(sys.stdin.readline())
    worker = _WORKERS[plan.kind](plan)
    channels = [
        grpc.aio.insecure_channel(plan.target, options=_OPTIONS) for _ in range(plan.channels)
    ]
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        for channel in channels:
            channel.get_state(try_to_connect=True)
        for channel in channels:
            await channel.channel_ready()
    _say("ready")
    await _heard()
    record = Record()
    started = time.perf_counter()
    await asyncio.gather(
        *(worker(channel, number, record) for number, channel in enumerate(channels))
    )
    seconds = time.perf_counter() - started
    _say(json.dumps(asdict(_result(plan, record, seconds))))
    await _heard()
    end_process(0)


def _result(plan: LoadPlan, record: Record, seconds: float) -> LoadResult:
    done = len(record.answers)
    if plan.kind is LoadKind.BATCHED:
        parsed = [pb.SubmitUpdatesResponse.FromString(answer) for answer in record.answers]
        outcomes = [outcome for answer in parsed for outcome in answer.outcomes]
        refused = [o.error.message for o in outcomes if o.WhichOneof("outcome") == "error"]
        record.errors.extend(refused[:MAX_ERRORS])
        done = len(outcomes) - len(refused)
    if done != plan.count and not record.errors:
        record.errors.append(f"{done} of {plan.count} were answered")
    return LoadResult(
        seconds=seconds,
        done=done,
        started_at=record.started_at,
        latency_s=record.latency_s,
        errors=record.errors,
    )


def _unary(plan: LoadPlan) -> Worker:
    heads, rest = messages.inline_parts(plan, messages.Payload.of(plan.dim))
    waiting = iter(heads)

    async def work(channel: Channel, _number: int, record: Record) -> None:
        call = _unary_call(channel, "SubmitInlineUpdate")
        for head in waiting:
            started = time.perf_counter()
            try:
                record.note(started, await call(head + rest))
            except grpc.aio.AioRpcError as error:
                record.fail(error)

    return work


def _chunked(plan: LoadPlan) -> Worker:
    waiting = iter(messages.chunked_uploads(plan))

    async def work(channel: Channel, _number: int, record: Record) -> None:
        call = _upload_call(channel)
        for upload in waiting:
            started = time.perf_counter()
            try:
                record.note(started, await call(_stream(upload.head, upload.chunks)))
            except grpc.aio.AioRpcError as error:
                record.fail(error)

    return work


def _batched(plan: LoadPlan) -> Worker:
    waiting = iter(messages.batches(plan, messages.Payload.of(plan.dim)))

    async def work(channel: Channel, _number: int, record: Record) -> None:
        stream: StreamStream = channel.stream_stream(f"{SERVICE}SubmitUpdates")
        call = stream()
        sent: list[float] = []
        try:
            for _ in range(BATCHES_IN_FLIGHT):
                await _send_next(call, waiting, sent)
            while sent:
                answer = await call.read()
                if not isinstance(answer, bytes):
                    break
                record.note(sent.pop(0), answer)
                await _send_next(call, waiting, sent)
            await call.done_writing()
        except grpc.aio.AioRpcError as error:
            record.fail(error)

    return work


async def _send_next(
    call: grpc.aio.StreamStreamCall[bytes, bytes], waiting: Iterator[bytes], sent: list[float]
) -> None:
    message = next(waiting, None)
    if message is not None:
        sent.append(time.perf_counter())
        await call.write(message)


def _check_in(plan: LoadPlan) -> Worker:
    pause_s = plan.channels / plan.rate_per_s

    async def work(channel: Channel, number: int, record: Record) -> None:
        call = _unary_call(channel, "CheckIn")
        request = pb.CheckInRequest(
            task=plan.task,
            device_id=device_name(plan.first + number),
            check_in_id=f"c{number}",
            state=pb.DeviceState(charging=True),
        ).SerializeToString()
        begin = time.perf_counter() + number / plan.rate_per_s
        for turn in range(plan.count // plan.channels):
            due = begin + turn * pause_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            started = time.perf_counter()
            try:
                record.note(started, await call(request))
            except grpc.aio.AioRpcError as error:
                record.fail(error)

    return work


def _rounds(plan: LoadPlan) -> Worker:
    payload = messages.Payload.of(plan.dim)
    chunks = messages.stream_chunks(payload)

    async def work(channel: Channel, number: int, record: Record) -> None:
        try:
            for turn in range(plan.count // plan.channels):
                started = time.perf_counter()
                assignment = await _assignment(plan, channel, number, turn)
                fetch = pb.FetchModelRequest(
                    task=plan.task, model_version=assignment.model_version
                ).SerializeToString()
                download: UnaryStream = channel.unary_stream(f"{SERVICE}FetchModel")
                async for _ in download(fetch):
                    pass
                head = messages.header(plan, payload, number)
                head.round, head.model_version = assignment.round, assignment.model_version
                first = pb.SubmitUpdateRequest(header=head).SerializeToString()
                call = _upload_call(channel)
                record.note(started, await call(_stream(first, chunks)))
        except grpc.aio.AioRpcError as error:
            record.fail(error)

    return work


async def _assignment(plan: LoadPlan, channel: Channel, number: int, turn: int) -> pb.Assignment:
    call = _unary_call(channel, "CheckIn")
    request = pb.CheckInRequest(
        task=plan.task,
        device_id=device_name(plan.first + number),
        check_in_id=f"{os.getpid()}-{turn}",  # new in every process, or an old answer comes back
        state=pb.DeviceState(charging=True),
        max_wait_ms=30_000,
    ).SerializeToString()
    while True:
        answer = pb.CheckInResponse.FromString(await call(request))
        if answer.WhichOneof("outcome") == "assignment":
            return answer.assignment
        await asyncio.sleep(answer.retry_later.retry_after_ms / 1000)


def _unary_call(channel: Channel, method: str) -> UnaryUnary:
    call: UnaryUnary = channel.unary_unary(SERVICE + method)
    return call


def _upload_call(channel: Channel) -> StreamUnary:
    call: StreamUnary = channel.stream_unary(f"{SERVICE}SubmitUpdate")
    return call


async def _stream(head: bytes, chunks: Sequence[bytes]) -> AsyncIterator[bytes]:
    yield head
    for chunk in chunks:
        yield chunk


async def _heard() -> None:
    """Wait for a line, or the end of standard input."""
    await asyncio.to_thread(sys.stdin.readline)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


_WORKERS: Final[dict[LoadKind, Callable[[LoadPlan], Worker]]] = {
    LoadKind.UNARY: _unary,
    LoadKind.CHUNKED: _chunked,
    LoadKind.BATCHED: _batched,
    LoadKind.CHECK_IN: _check_in,
    LoadKind.ROUNDS: _rounds,
}

if __name__ == "__main__":
    uvloop.run(main())
