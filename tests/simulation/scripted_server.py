"""A coordinator that follows a script: every device takes part in every round, on its own."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc
import numpy as np
import xxhash
from numpy.typing import NDArray

from aggregators.vectors import decode_model, encode_model, flatten, layout_of
from compression import codec
from protos.fedagg.v1 import errors_pb2, federation_pb2, federation_pb2_grpc
from simulation.models import initial_weights

TASK = "digits"
_DIM = 64 * 64 + 64 + 64 * 10 + 10


@dataclass
class ScriptedServer(federation_pb2_grpc.FederationServicer):
    """Answers devices and remembers what it promised them.

    Attributes:
        num_rounds: rounds each device is given.
        refuse_round: this round's updates are refused as ROUND_CLOSED; 0: none.
        updates: accepted update and its header, by (device, round).
    """

    num_rounds: int = 2
    refuse_round: int = 0
    max_wait_ms: int = 0
    model: bytes = field(default_factory=lambda: encode_model(initial_weights("digits", 0)))
    offers: dict[str, int] = field(default_factory=dict)
    updates: dict[tuple[str, int], tuple[federation_pb2.UpdateHeader, NDArray[np.float32]]] = field(
        default_factory=dict
    )

    async def CheckIn(  # noqa: N802
        self,
        request: federation_pb2.CheckInRequest,
        context: grpc.aio.ServicerContext,
    ) -> federation_pb2.CheckInResponse:
        del context
        number = self.offers[request.device_id] = self.offers.get(request.device_id, 0) + 1
        if number > self.num_rounds:
            return federation_pb2.CheckInResponse(
                retry_later=federation_pb2.RetryLater(
                    reason=federation_pb2.RetryLater.TASK_FINISHED, retry_after_ms=1
                )
            )
        assignment = federation_pb2.Assignment(
            task=request.task,
            round=number,
            model_version=1,
            model_sha256=hashlib.sha256(self.model).hexdigest(),
            model_bytes=len(self.model),
            dim=_DIM,
            ttl_ms=60_000,
            max_update_bytes=1 << 20,
            plan=federation_pb2.Plan(local_epochs=1, batch_size=16, learning_rate=0.1),
        )
        return federation_pb2.CheckInResponse(assignment=assignment)

    async def FetchModel(  # noqa: N802
        self,
        request: federation_pb2.FetchModelRequest,
        context: grpc.aio.ServicerContext,
    ) -> AsyncIterator[federation_pb2.ModelChunk]:
        del context
        yield federation_pb2.ModelChunk(
            model_version=1,
            total_bytes=len(self.model),
            offset=request.offset,
            sha256=hashlib.sha256(self.model).hexdigest(),
            data=self.model[request.offset :],
        )

    async def SubmitInlineUpdate(  # noqa: N802
        self,
        request: federation_pb2.InlineUpdate,
        context: grpc.aio.ServicerContext,
    ) -> federation_pb2.SubmissionReceipt:
        header = request.header
        if header.round == self.refuse_round:
            detail = errors_pb2.ErrorDetail(reason=errors_pb2.ROUND_CLOSED, message="too late")
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "too late",
                (("fedagg-error-bin", detail.SerializeToString()),),
            )
        if header.payload_digest != xxhash.xxh3_128_digest(request.payload):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "digest")
        vector = codec.decode(request.payload, dim=_DIM).copy()
        self.updates[header.device_id, header.round] = (header, vector)
        return federation_pb2.SubmissionReceipt(
            task=header.task,
            round=header.round,
            device_id=header.device_id,
            submission_id=header.submission_id,
            payload_digest=header.payload_digest,
            accepted_at_ms=1,
        )

    def initial_vector(self) -> NDArray[np.float32]:
        """The model as the devices receive it."""
        tensors, _ = decode_model(self.model)
        return flatten(tensors, layout_of(tensors))
