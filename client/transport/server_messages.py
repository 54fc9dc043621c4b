"""Protobuf messages to and from the client's own values: the only place that knows both."""

import math
from typing import Final

import grpc

from client.errors import (
    ERROR_CLASSES,
    AuthenticationError,
    ConflictError,
    ErrorReason,
    FedaggError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    ProtocolError,
    RefusedError,
    ServerInternalError,
    ServiceUnavailableError,
    TransportError,
)
from client.trainer import Plan
from client.transport.messages import (
    Assignment,
    DeviceState,
    ModelRequest,
    Offer,
    Progress,
    Receipt,
    RetryLater,
    RetryLaterReason,
    RoundStatus,
    Submission,
    SubmissionKey,
    UploadStatus,
)
from protos.fedagg.v1 import errors_pb2, federation_pb2
from protos.wire import ERROR_METADATA_KEY, SHA256_HEX
from updates.compression_plan import CompressionPlan
from updates.errors import CompressionError
from updates.plan_message import from_message

# What a bare status means: the peer is then a proxy, or gRPC itself.
_CLASS_OF_STATUS: Final[dict[grpc.StatusCode, type[RefusedError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionError,
    grpc.StatusCode.ALREADY_EXISTS: ConflictError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: AuthenticationError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ServiceUnavailableError,
    grpc.StatusCode.ABORTED: ServiceUnavailableError,
}
# A server that shuts down cancels its calls; a cancellation of our own is never an RPC error.
# INTERNAL without a detail is gRPC's own word, not the server's: it says so also where the server
# answered an upload early and a message was still on its way.
_CONNECTION_LOST: Final = frozenset(
    {
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    }
)


def error_from_rpc(error: grpc.aio.AioRpcError) -> FedaggError:
    """Return the exception for a failed call: by its `ErrorDetail`, else by its status."""
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_METADATA_KEY and isinstance(value, bytes):
            return error_from_detail(errors_pb2.ErrorDetail.FromString(value))
    code, details = error.code(), error.details() or ""
    if code in _CONNECTION_LOST:
        return TransportError(f"{code.name}: {details}")
    error_class = _CLASS_OF_STATUS.get(code, ServerInternalError)
    return error_class(ErrorReason.ERROR_REASON_UNSPECIFIED, f"{code.name}: {details}")


def error_from_detail(detail: errors_pb2.ErrorDetail) -> RefusedError:
    """Return the exception for a refusal; a reason newer than this client is unspecified."""
    try:
        reason = ErrorReason(detail.reason)
    except ValueError:
        reason = ErrorReason.ERROR_REASON_UNSPECIFIED
    hint_s = detail.retry_after_ms / 1_000 if detail.retry_after_ms else None
    return ERROR_CLASSES[reason](reason, detail.message, retry_after_s=hint_s)


def check_in_request(offer: Offer) -> federation_pb2.CheckInRequest:
    """Write an offer as a request; the wait is rounded to milliseconds."""
    return federation_pb2.CheckInRequest(
        task=offer.task,
        device_id=offer.device_id,
        check_in_id=offer.check_in_id,
        state=_device_state(offer.state),
        max_wait_ms=round(offer.max_wait_s * 1_000),
    )


def check_in_answer(message: federation_pb2.CheckInResponse) -> Assignment | RetryLater:
    """Read what became of an offer.

    Raises:
        ProtocolError: if the answer holds neither outcome, or an assignment that cannot be.
    """
    match message.WhichOneof("outcome"):
        case "assignment":
            return _assignment(message.assignment)
        case "retry_later":
            return _retry_later(message.retry_later)
        case None:
            raise ProtocolError("the check-in response has no outcome")


def fetch_request(model: ModelRequest, *, offset: int) -> federation_pb2.FetchModelRequest:
    """Ask for a model file from `offset` on, in bytes."""
    return federation_pb2.FetchModelRequest(
        task=model.task,
        model_version=model.model_version,
        offset=offset,
        device_id=model.device_id,
    )


def update_header(submission: Submission, *, offset: int = 0) -> federation_pb2.UpdateHeader:
    """Write what precedes a payload that is sent from `offset` on, in bytes."""
    return federation_pb2.UpdateHeader(
        task=submission.task,
        round=submission.round,
        device_id=submission.device_id,
        submission_id=submission.submission_id,
        model_version=submission.model_version,
        num_samples=submission.num_samples,
        payload_bytes=len(submission.payload),
        payload_digest=submission.payload_digest,
        offset=offset,
        loss_before=submission.loss_before,
        loss_after=submission.loss_after,
        within_clipping_norm=submission.within_clipping_norm,
    )


def inline_update(submission: Submission) -> federation_pb2.InlineUpdate:
    """Write header and whole payload as one message."""
    return federation_pb2.InlineUpdate(
        header=update_header(submission), payload=submission.payload[:]
    )


def upload_status_request(
    submission: Submission | SubmissionKey,
) -> federation_pb2.GetUploadStatusRequest:
    """Ask how much of a submission is stored."""
    return federation_pb2.GetUploadStatusRequest(
        task=submission.task,
        round=submission.round,
        device_id=submission.device_id,
        submission_id=submission.submission_id,
        payload_digest=submission.payload_digest,
    )


def receipt_if_accepted(
    message: federation_pb2.GetUploadStatusResponse, key: SubmissionKey
) -> Receipt | None:
    """Return the receipt of a submission whose payload is no longer at hand."""
    return receipt(message.receipt, key) if message.HasField("receipt") else None


def upload_status(
    message: federation_pb2.GetUploadStatusResponse, submission: Submission
) -> UploadStatus:
    """Read how much of a submission is stored, or its receipt.

    Raises:
        ProtocolError: if more bytes are stored than there are, or the receipt is of something else.
    """
    if message.HasField("receipt"):
        return UploadStatus(
            stored_bytes=len(submission.payload), receipt=receipt(message.receipt, submission)
        )
    if message.stored_bytes > len(submission.payload):
        raise ProtocolError(
            f"stored_bytes={message.stored_bytes} exceeds the payload's {len(submission.payload)}"
        )
    return UploadStatus(stored_bytes=message.stored_bytes, receipt=None)


def receipt(
    message: federation_pb2.SubmissionReceipt, submission: Submission | SubmissionKey
) -> Receipt:
    """Return the receipt once it is proven to be that of `submission`."""
    answered = (message.task, message.round, message.device_id, message.submission_id)
    asked = (submission.task, submission.round, submission.device_id, submission.submission_id)
    if answered != asked or message.payload_digest != submission.payload_digest:
        raise ProtocolError(f"the receipt is for {answered}, not for {asked} with its digest")
    return Receipt(
        task=message.task,
        round=message.round,
        device_id=message.device_id,
        submission_id=message.submission_id,
        payload_digest=message.payload_digest,
        accepted_at_ms=message.accepted_at_ms,
    )


def progress_request(progress: Progress) -> federation_pb2.ReportProgressRequest:
    """Write how far the training is."""
    return federation_pb2.ReportProgressRequest(
        task=progress.task,
        round=progress.round,
        device_id=progress.device_id,
        stage=federation_pb2.ReportProgressRequest.Stage.Value(progress.stage.name),
        fraction=progress.fraction,
    )


def round_status(message: federation_pb2.ReportProgressResponse) -> RoundStatus:
    """Read whether the round still waits, and for how many seconds."""
    return RoundStatus(is_open=message.round_open, ttl_s=message.ttl_ms / 1_000)


def _device_state(state: DeviceState) -> federation_pb2.DeviceState:
    return federation_pb2.DeviceState(
        battery_percent=state.battery_percent,
        charging=state.charging,
        metered_network=state.metered_network,
        idle=state.idle,
        available_ram_mib=state.available_ram_mib,
        app_version=state.app_version,
    )


def _assignment(message: federation_pb2.Assignment) -> Assignment:
    for name in ("round", "model_version", "model_bytes", "dim", "max_update_bytes"):
        if not getattr(message, name):
            raise ProtocolError(f"the assignment's {name} is missing")
    if not SHA256_HEX.fullmatch(message.model_sha256):
        raise ProtocolError(f"model_sha256={message.model_sha256!r} is not a SHA-256 in hex")
    return Assignment(
        task=message.task,
        round=message.round,
        model_version=message.model_version,
        model_sha256=message.model_sha256,
        model_bytes=message.model_bytes,
        dim=message.dim,
        ttl_s=message.ttl_ms / 1_000,
        max_update_bytes=message.max_update_bytes,
        plan=_plan(message.plan, round_number=message.round, dim=message.dim),
        traceparent=message.traceparent,
        shared_parameters=message.shared_parameters,
        direct_delivery=message.direct_delivery,
    )


def _plan(message: federation_pb2.Plan, *, round_number: int, dim: int) -> Plan:
    clipping_norm = message.clipping_norm
    # A NaN would compare false with everything and quietly switch clipping off.
    if not 0 <= clipping_norm < math.inf:
        raise ProtocolError(f"clipping_norm={clipping_norm} must be finite and >= 0")
    noise = message.privacy.device_noise_multiplier
    if not 0 <= noise < math.inf:
        raise ProtocolError(f"device_noise_multiplier={noise} must be finite and >= 0")
    if not clipping_norm and (noise or message.privacy.reports_clipping):
        raise ProtocolError("a plan with device noise or clipping reports needs a clipping_norm")
    return Plan(
        local_epochs=message.local_epochs,
        batch_size=message.batch_size,
        learning_rate=message.learning_rate,
        clipping_norm=clipping_norm,
        hyperparameters=dict(message.hyperparameters),
        round=round_number,
        compression=_compression(message, dim),
        device_noise_multiplier=noise,
        reports_clipping=message.privacy.reports_clipping,
    )


def _compression(message: federation_pb2.Plan, dim: int) -> CompressionPlan | None:
    if not message.HasField("compression"):
        return None
    try:
        return from_message(message.compression, dim=dim)
    except CompressionError as error:
        raise ProtocolError(f"the compression plan cannot be followed: {error}") from error


def _retry_later(message: federation_pb2.RetryLater) -> RetryLater:
    try:
        reason = RetryLaterReason(message.reason)
    except ValueError:
        raise ProtocolError(f"unknown RetryLater reason {message.reason}") from None
    return RetryLater(
        reason=reason,
        # At least the smallest hint the protocol knows, so that a zero cannot make a busy loop.
        retry_after_s=max(message.retry_after_ms, 1) / 1_000,
        detail=message.detail,
    )
