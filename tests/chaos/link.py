"""Calls of a device over real gRPC, with what the network may do to them."""

from __future__ import annotations  # the async stub is generic in the stubs only

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

import grpc
import xxhash

from protos.fedagg.v1 import errors_pb2
from protos.fedagg.v1 import federation_pb2 as pb
from protos.fedagg.v1.federation_pb2_grpc import FederationStub
from tests.chaos.operations import Link, Path
from updates.codec import encode_dense

if TYPE_CHECKING:
    from protos.fedagg.v1.federation_pb2_grpc import FederationAsyncStub
    from tests.chaos.ledger import Attempt, Vector

TASK: Final = "chaos"
CHUNK_BYTES: Final = 500
TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The call was answered with an error."""

    reason: str


@dataclass(frozen=True, slots=True)
class Silence:
    """No answer reached the device."""


Answer = pb.SubmissionReceipt | Refusal | Silence


class DeviceLink:
    """Connections of all devices to one coordinator."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._stub: FederationAsyncStub = FederationStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def check_in(self, device: int, check_in_id: str) -> pb.CheckInResponse:
        request = pb.CheckInRequest(
            task=TASK,
            device_id=_device_id(device),
            check_in_id=check_in_id,
            state=pb.DeviceState(charging=True),
        )
        return await self._stub.CheckIn(request, timeout=TIMEOUT_S)

    async def model(self, version: int) -> bytes | None:
        """The file of a model version; None: there is none."""
        request = pb.FetchModelRequest(task=TASK, model_version=version)
        try:
            chunks = [c.data async for c in self._stub.FetchModel(request, timeout=TIMEOUT_S)]
        except grpc.aio.AioRpcError as error:
            if _reason(error) == "UNKNOWN_MODEL_VERSION":
                return None
            raise
        return b"".join(chunks)

    async def upload(
        self, attempt: Attempt, *, model_version: int, path: Path, link: Link = Link.FINE
    ) -> Answer:
        """Send an update over `path`; what `link` loses is lost, also the answer."""
        header, payload = _message(attempt, model_version)
        streamed = path in {Path.STREAM, Path.RESUME}
        if link is Link.DROP_REQUEST or (link in {Link.BREAK, Link.END_EARLY} and not streamed):
            return Silence()
        try:
            answer = await self._send(header, payload, path, link)
        except grpc.aio.AioRpcError as error:
            answer = Silence() if _is_of_grpc(error) else Refusal(reason=_reason(error))
        return Silence() if link is Link.DROP_RESPONSE else answer

    async def _send(
        self, header: pb.UpdateHeader, payload: bytes, path: Path, link: Link
    ) -> Answer:
        match path:
            case Path.INLINE:
                update = pb.InlineUpdate(header=header, payload=payload)
                return await self._stub.SubmitInlineUpdate(update, timeout=TIMEOUT_S)
            case Path.BATCH:
                return await self._batch(pb.InlineUpdate(header=header, payload=payload))
            case Path.RESUME:
                status = await self._stub.GetUploadStatus(
                    pb.GetUploadStatusRequest(
                        task=header.task,
                        round=header.round,
                        device_id=header.device_id,
                        submission_id=header.submission_id,
                        payload_digest=header.payload_digest,
                    ),
                    timeout=TIMEOUT_S,
                )
                if status.HasField("receipt"):
                    return status.receipt
                header.offset = status.stored_bytes
        return await self._stream(header, payload[header.offset :], link)

    async def _batch(self, update: pb.InlineUpdate) -> Answer:
        call = self._stub.SubmitUpdates(timeout=TIMEOUT_S)
        await call.write(pb.SubmitUpdatesRequest(batch_id=7, updates=[update]))
        await call.done_writing()
        response = await call.read()
        if not isinstance(response, pb.SubmitUpdatesResponse):
            await call.code()
            return Silence()
        outcome = response.outcomes[0]
        if outcome.HasField("receipt"):
            return outcome.receipt
        return Refusal(reason=errors_pb2.ErrorReason.Name(outcome.error.reason))

    async def _stream(self, header: pb.UpdateHeader, data: bytes, link: Link) -> Answer:
        call = self._stub.SubmitUpdate(timeout=TIMEOUT_S)
        broken = link in {Link.BREAK, Link.END_EARLY}
        end = len(data) // 2 if broken else len(data)
        try:
            await call.write(pb.SubmitUpdateRequest(header=header))
            for start in range(0, end, CHUNK_BYTES):
                await call.write(
                    pb.SubmitUpdateRequest(data=data[start : min(start + CHUNK_BYTES, end)])
                )
            if link is Link.BREAK:
                call.cancel()
                return Silence()
            await call.done_writing()
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
            pass  # answered before the end, or broken: the call tells what happened
        return await call


def _message(attempt: Attempt, model_version: int) -> tuple[pb.UpdateHeader, bytes]:
    payload = _payload(attempt.vector)
    header = pb.UpdateHeader(
        task=TASK,
        round=attempt.round,
        device_id=_device_id(attempt.device),
        submission_id=f"s{attempt.submission}",
        model_version=model_version,
        num_samples=1,
        payload_bytes=len(payload),
        payload_digest=xxhash.xxh3_128_digest(payload),
    )
    return header, payload


def _payload(vector: Vector) -> bytes:
    return encode_dense(vector)


def _device_id(device: int) -> str:
    return f"d{device}"


def _is_of_grpc(error: grpc.aio.AioRpcError) -> bool:
    """Whether a write came too late: the server had ended the call, and its answer is lost."""
    is_internal = error.code() is grpc.StatusCode.INTERNAL
    return is_internal and (error.details() or "").startswith("Internal error from Core")


def _reason(error: grpc.aio.AioRpcError) -> str:
    for key, value in error.trailing_metadata() or ():
        if key == "fedagg-error-bin":
            detail = errors_pb2.ErrorDetail.FromString(cast("bytes", value))
            return errors_pb2.ErrorReason.Name(detail.reason)
    return error.code().name
