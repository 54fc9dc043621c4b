"""A real gRPC server whose federation service follows a script of faults."""

# ruff: noqa: N802 - the methods have the names of the protocol

from __future__ import annotations  # the grpc types are generic in the stubs only

import asyncio
import hashlib
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

import grpc
import numpy as np
import xxhash
from numpy.typing import NDArray

from client.config import ClientConfig, RetryPolicy
from client.transport.messages import ModelRequest, Submission
from protos.fedagg.v1 import errors_pb2
from protos.fedagg.v1 import federation_pb2 as pb
from protos.fedagg.v1.federation_pb2_grpc import (
    FederationServicer,
    add_FederationServicer_to_server,
)
from updates.codec import encode_dense
from updates.vectors import encode_model

_Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"

TASK = "digits"
DEVICE = "device-1"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def make_tensors(size: int = 6) -> dict[str, NDArray[np.float32]]:
    # Names out of alphabetical order: model order has to come from the file.
    return {
        "weight": np.linspace(-1, 1, size, dtype=np.float32).reshape(2, -1),
        "bias": np.array([0.5], dtype=np.float32),
    }


@dataclass(frozen=True)
class Refuse:
    """Answer with an error detail instead of doing the call."""

    reason: errors_pb2.ErrorReason.ValueType
    code: grpc.StatusCode
    retry_after_ms: int = 0


@dataclass(frozen=True)
class Status:
    """Answer with a bare status, as a proxy does."""

    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE


@dataclass(frozen=True)
class LoseResponse:
    """Do the call, then lose the connection instead of answering."""


@dataclass(frozen=True)
class BreakAfter:
    """Move so many bytes of the stream, then lose the connection."""

    num_bytes: int


@dataclass(frozen=True)
class Hang:
    """Never answer."""


Fault = Refuse | Status | LoseResponse | BreakAfter | Hang


@dataclass
class Call:
    method: str
    request: object
    metadata: dict[str, str | bytes]


@dataclass
class ScriptedFederation(FederationServicer):
    """Serves one model and takes updates; `faults[method]` are used up call by call."""

    model: bytes = field(default_factory=lambda: encode_model(make_tensors()))
    dim: int = 7
    chunk_bytes: int = 100
    ttl_ms: int = 600_000
    max_update_bytes: int = 1 << 20
    clipping_norm: float = 0.0
    round: int = 3
    model_version: int = 2
    shared_parameters: bytes = b""
    compression: pb.CompressionPlan | None = None
    privacy: pb.PrivacyPlan | None = None
    answers: deque[pb.CheckInResponse] = field(default_factory=deque)
    faults: dict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    calls: list[Call] = field(default_factory=list)
    stored: dict[str, bytearray] = field(default_factory=lambda: defaultdict(bytearray))
    accepted: dict[str, pb.UpdateHeader] = field(default_factory=dict)
    round_open: bool = True
    offset_shift: int = 0
    receipt_changes: dict[str, str | bytes] = field(default_factory=dict)
    sha256: str = ""

    def __post_init__(self) -> None:
        self.sha256 = hashlib.sha256(self.model).hexdigest()

    def requests(self, method: str) -> list[object]:
        return [call.request for call in self.calls if call.method == method]

    def count(self, method: str) -> int:
        return len(self.requests(method))

    def assignment(self) -> pb.CheckInResponse:
        return pb.CheckInResponse(
            assignment=pb.Assignment(
                task=TASK,
                round=self.round,
                model_version=self.model_version,
                model_sha256=self.sha256,
                model_bytes=len(self.model),
                dim=self.dim,
                ttl_ms=self.ttl_ms,
                max_update_bytes=self.max_update_bytes,
                plan=pb.Plan(
                    local_epochs=2,
                    batch_size=4,
                    learning_rate=0.1,
                    clipping_norm=self.clipping_norm,
                    hyperparameters={"mu": 0.25},
                    compression=self.compression,
                    privacy=self.privacy,
                ),
                traceparent=TRACEPARENT,
                shared_parameters=self.shared_parameters,
            )
        )

    async def CheckIn(self, request: pb.CheckInRequest, context: _Context) -> pb.CheckInResponse:
        fault = await self._begin("CheckIn", request, context)
        answer = self.answers.popleft() if self.answers else self.assignment()
        await _lose(fault, context)
        return answer

    async def FetchModel(
        self, request: pb.FetchModelRequest, context: _Context
    ) -> AsyncIterator[pb.ModelChunk]:
        fault = await self._begin("FetchModel", request, context)
        end = len(self.model)
        if isinstance(fault, BreakAfter):
            end = min(end, request.offset + fault.num_bytes)
        for start in range(request.offset, end, self.chunk_bytes):
            yield pb.ModelChunk(
                model_version=self.model_version,
                total_bytes=len(self.model),
                offset=start + self.offset_shift,
                sha256=self.sha256,
                data=self.model[start : min(start + self.chunk_bytes, end)],
            )
        await _lose(fault, context)

    async def SubmitUpdate(
        self, request_iterator: AsyncIterator[pb.SubmitUpdateRequest], context: _Context
    ) -> pb.SubmissionReceipt:
        header = (await anext(aiter(request_iterator))).header
        fault = await self._begin("SubmitUpdate", header, context)
        stored = self.stored[header.submission_id]
        if header.offset > len(stored):
            await _refuse(
                context,
                Refuse(errors_pb2.OFFSET_OUT_OF_RANGE, grpc.StatusCode.INVALID_ARGUMENT),
            )
        del stored[header.offset :]
        received = 0
        async for part in request_iterator:
            received += len(part.data)
            stored += part.data
            if isinstance(fault, BreakAfter) and received >= fault.num_bytes:
                del stored[header.offset + fault.num_bytes :]
                await _lose(fault, context)
        receipt = self._accept(header, bytes(stored))
        await _lose(fault, context)
        return receipt

    async def SubmitInlineUpdate(
        self, request: pb.InlineUpdate, context: _Context
    ) -> pb.SubmissionReceipt:
        fault = await self._begin("SubmitInlineUpdate", request, context)
        receipt = self._accept(request.header, request.payload)
        await _lose(fault, context)
        return receipt

    async def SubmitUpdates(
        self, request_iterator: AsyncIterator[pb.SubmitUpdatesRequest], context: _Context
    ) -> AsyncIterator[pb.SubmitUpdatesResponse]:
        fault = await self._begin("SubmitUpdates", None, context)
        answered = 0
        async for batch in request_iterator:
            self.calls.append(Call("batch", batch, {}))
            if isinstance(fault, BreakAfter) and answered == fault.num_bytes:
                await _lose(fault, context)
            yield pb.SubmitUpdatesResponse(
                batch_id=batch.batch_id,
                outcomes=[self._outcome(update) for update in batch.updates],
            )
            answered += 1

    async def GetUploadStatus(
        self, request: pb.GetUploadStatusRequest, context: _Context
    ) -> pb.GetUploadStatusResponse:
        await self._begin("GetUploadStatus", request, context)
        if request.submission_id in self.accepted:
            header = self.accepted[request.submission_id]
            return pb.GetUploadStatusResponse(receipt=_receipt(header))
        return pb.GetUploadStatusResponse(stored_bytes=len(self.stored[request.submission_id]))

    async def ReportProgress(
        self, request: pb.ReportProgressRequest, context: _Context
    ) -> pb.ReportProgressResponse:
        await self._begin("ReportProgress", request, context)
        return pb.ReportProgressResponse(
            round_open=self.round_open, ttl_ms=self.ttl_ms if self.round_open else 0
        )

    async def _begin(self, method: str, request: object, context: _Context) -> Fault | None:
        metadata = dict(context.invocation_metadata() or ())
        self.calls.append(Call(method, request, metadata))
        fault = self.faults[method].popleft() if self.faults[method] else None
        match fault:
            case Refuse():
                await _refuse(context, fault)
            case Status(code):
                await context.abort(code, "scripted")
            case Hang():
                await asyncio.Event().wait()
        return fault

    def _accept(self, header: pb.UpdateHeader, payload: bytes) -> pb.SubmissionReceipt:
        # An accident in the client's chunks must not pass as a fault of the script.
        assert len(payload) == header.payload_bytes
        assert xxhash.xxh3_128_digest(payload) == header.payload_digest
        self.stored[header.submission_id] = bytearray(payload)
        self.accepted[header.submission_id] = header
        receipt = _receipt(header)
        for name, value in self.receipt_changes.items():
            setattr(receipt, name, value)
        return receipt

    def _outcome(self, update: pb.InlineUpdate) -> pb.SubmissionOutcome:
        if update.header.num_samples == 13:
            detail = errors_pb2.ErrorDetail(reason=errors_pb2.WRONG_SHAPE, message="13")
            return pb.SubmissionOutcome(error=detail)
        return pb.SubmissionOutcome(receipt=self._accept(update.header, update.payload))


class FakeTime:
    """A clock that only `sleep` moves."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.sleeps: list[float] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


@dataclass
class Served:
    """A running server and the script it follows."""

    script: ScriptedFederation
    address: str
    stop: Callable[[], Awaitable[None]]


async def serve(script: ScriptedFederation) -> Served:
    server = grpc.aio.server()
    add_FederationServicer_to_server(script, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return Served(script, f"127.0.0.1:{port}", lambda: server.stop(None))


def make_config(
    *addresses: str,
    retry: RetryPolicy | None = None,
    inline_max_bytes: int = 64 * 1024,
    progress_interval_s: float | None = None,
    stall_timeout_s: float = 30.0,
    deadline_margin_s: float = 0.5,
    call_timeout_s: float = 20.0,
) -> ClientConfig:
    return ClientConfig(
        servers=addresses,
        task=TASK,
        device_id=DEVICE,
        insecure=True,
        retry=retry or RetryPolicy(),
        inline_max_bytes=inline_max_bytes,
        progress_interval_s=progress_interval_s,
        stall_timeout_s=stall_timeout_s,
        deadline_margin_s=deadline_margin_s,
        call_timeout_s=call_timeout_s,
        max_wait_s=1.0,
    )


def make_submission(
    *, dim: int = 7, submission_id: str = "s-1", num_samples: int = 10
) -> Submission:
    vector = np.random.default_rng(dim).standard_normal(dim, dtype=np.float32)
    return Submission(
        task=TASK,
        round=3,
        device_id=DEVICE,
        submission_id=submission_id,
        model_version=2,
        num_samples=num_samples,
        payload=encode_dense(vector),
        loss_before=2.0,
        loss_after=1.0,
    )


def model_request(script: ScriptedFederation, **changes: str | int) -> ModelRequest:
    return ModelRequest(
        task=TASK,
        device_id=DEVICE,
        model_version=2,
        sha256=str(changes.get("sha256", script.sha256)),
        total_bytes=int(changes.get("total_bytes", len(script.model))),
    )


def _receipt(header: pb.UpdateHeader) -> pb.SubmissionReceipt:
    return pb.SubmissionReceipt(
        task=header.task,
        round=header.round,
        device_id=header.device_id,
        submission_id=header.submission_id,
        payload_digest=header.payload_digest,
        accepted_at_ms=1_700_000_000_000,
    )


async def _refuse(context: _Context, fault: Refuse) -> NoReturn:
    detail = errors_pb2.ErrorDetail(
        reason=fault.reason, message="scripted", retry_after_ms=fault.retry_after_ms
    )
    await context.abort(
        fault.code,
        "scripted",
        trailing_metadata=(("fedagg-error-bin", detail.SerializeToString()),),
    )


async def _lose(fault: Fault | None, context: _Context) -> None:
    if isinstance(fault, LoseResponse | BreakAfter):
        await context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")
