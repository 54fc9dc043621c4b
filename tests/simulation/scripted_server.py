"""A coordinator that follows a script: every device takes part in every round, on its own."""

# ruff: noqa: N802 - the methods have the names of the protocol

from __future__ import annotations  # the grpc types are generic in the stubs only

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

import grpc
import numpy as np
import xxhash
from numpy.typing import NDArray

from protos.fedagg.v1 import errors_pb2, federation_pb2, federation_pb2_grpc
from simulation.models import initial_weights
from updates import codec
from updates.vectors import encode_model

_Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"

TASK = "digits"
DIM = 64 * 64 + 64 + 64 * 10 + 10


@dataclass
class ScriptedServer(federation_pb2_grpc.FederationServicer):
    """Answers devices and remembers what it promised them.

    Attributes:
        num_rounds: rounds each device is given.
        refuse_round: this round's updates are refused as ROUND_CLOSED; 0: none.
        is_unknown: every check-in is refused as UNKNOWN_TASK.
        clipping_norm: what the plan says.
        terms: parameters of the rounds that are shared, by round.
        bundles: accepted payload of such a round, by (device, round).
        updates: accepted update and its header, by (device, round).
    """

    num_rounds: int = 2
    refuse_round: int = 0
    is_unknown: bool = False
    model: bytes = field(default_factory=lambda: encode_model(initial_weights("digits", 0)))
    clipping_norm: float = 0.0
    terms: dict[int, bytes] = field(default_factory=dict)
    bundles: dict[tuple[str, int], bytes] = field(default_factory=dict)
    end_reason: federation_pb2.RetryLater.Reason.ValueType = federation_pb2.RetryLater.TASK_FINISHED
    compression: federation_pb2.CompressionPlan | None = None
    offers: dict[str, int] = field(default_factory=dict)
    updates: dict[tuple[str, int], tuple[federation_pb2.UpdateHeader, NDArray[np.float32]]] = field(
        default_factory=dict
    )
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def CheckIn(
        self,
        request: federation_pb2.CheckInRequest,
        context: _Context,
    ) -> federation_pb2.CheckInResponse:
        if self.is_unknown:
            await _refuse(context, grpc.StatusCode.NOT_FOUND, errors_pb2.UNKNOWN_TASK)
        number = self.offers[request.device_id] = self.offers.get(request.device_id, 0) + 1
        if number > self.num_rounds:
            return federation_pb2.CheckInResponse(
                retry_later=federation_pb2.RetryLater(reason=self.end_reason, retry_after_ms=1)
            )
        assignment = federation_pb2.Assignment(
            task=request.task,
            round=number,
            model_version=1,
            model_sha256=hashlib.sha256(self.model).hexdigest(),
            model_bytes=len(self.model),
            dim=DIM,
            ttl_ms=60_000,
            max_update_bytes=1 << 20,
            plan=federation_pb2.Plan(
                local_epochs=1,
                batch_size=16,
                learning_rate=0.1,
                clipping_norm=self.clipping_norm,
                compression=self.compression,
            ),
            shared_parameters=self.terms.get(number, b""),
        )
        return federation_pb2.CheckInResponse(assignment=assignment)

    async def FetchModel(
        self,
        request: federation_pb2.FetchModelRequest,
        context: _Context,
    ) -> AsyncIterator[federation_pb2.ModelChunk]:
        del context
        yield federation_pb2.ModelChunk(
            model_version=1,
            total_bytes=len(self.model),
            offset=request.offset,
            sha256=hashlib.sha256(self.model).hexdigest(),
            data=self.model[request.offset :],
        )

    async def SubmitInlineUpdate(
        self,
        request: federation_pb2.InlineUpdate,
        context: _Context,
    ) -> federation_pb2.SubmissionReceipt:
        header = request.header
        if header.round == self.refuse_round:
            await _refuse(context, grpc.StatusCode.FAILED_PRECONDITION, errors_pb2.ROUND_CLOSED)
        if header.payload_digest != xxhash.xxh3_128_digest(request.payload):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "digest")
        if header.round in self.terms:
            self.bundles[header.device_id, header.round] = request.payload
            vector = np.empty(0, dtype=np.float32)
        else:
            vector = codec.decode(request.payload, dim=DIM).copy()
        async with self.changed:
            self.updates[header.device_id, header.round] = (header, vector)
            self.changed.notify_all()
        return federation_pb2.SubmissionReceipt(
            task=header.task,
            round=header.round,
            device_id=header.device_id,
            submission_id=header.submission_id,
            payload_digest=header.payload_digest,
            accepted_at_ms=1,
        )

    async def wait_for_devices(self, count: int) -> None:
        """Return once updates of `count` devices were accepted."""
        async with self.changed:
            await self.changed.wait_for(lambda: len({key[0] for key in self.updates}) >= count)

    # Small updates from patient devices need none of these.

    async def SubmitUpdate(
        self,
        request_iterator: AsyncIterator[federation_pb2.SubmitUpdateRequest],
        context: _Context,
    ) -> federation_pb2.SubmissionReceipt:
        raise NotImplementedError

    def SubmitUpdates(
        self,
        request_iterator: AsyncIterator[federation_pb2.SubmitUpdatesRequest],
        context: _Context,
    ) -> AsyncIterator[federation_pb2.SubmitUpdatesResponse]:
        raise NotImplementedError

    async def GetUploadStatus(
        self, request: federation_pb2.GetUploadStatusRequest, context: _Context
    ) -> federation_pb2.GetUploadStatusResponse:
        raise NotImplementedError

    async def ReportProgress(
        self, request: federation_pb2.ReportProgressRequest, context: _Context
    ) -> federation_pb2.ReportProgressResponse:
        del context
        is_open = request.round != self.refuse_round
        return federation_pb2.ReportProgressResponse(
            round_open=is_open, ttl_ms=60_000 if is_open else 0
        )


async def serve(script: ScriptedServer, port: int = 0) -> tuple[grpc.aio.Server, int]:
    """Start a server on a loopback port; return it and the port."""
    server = grpc.aio.server()
    federation_pb2_grpc.add_FederationServicer_to_server(script, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server, port


async def _refuse(
    context: _Context, code: grpc.StatusCode, reason: errors_pb2.ErrorReason.ValueType
) -> NoReturn:
    detail = errors_pb2.ErrorDetail(reason=reason, message="as scripted")
    trailer = (("fedagg-error-bin", detail.SerializeToString()),)
    await context.abort(code, "as scripted", trailer)
