"""The one table from errors to gRPC statuses and wire reasons.

A status says what the peer should do next (never retry, fix its state first, back off); the reason
says what happened. Unknown exceptions become INTERNAL with no detail: nothing of the server leaks.
"""

from typing import Final

import grpc

from protos.fedagg.v1 import errors_pb2
from server import errors
from server.errors import ServiceError

MAX_MESSAGE_CHARS: Final = 1000

STATUS: Final[dict[type[errors.ServiceError], grpc.StatusCode]] = {
    errors.MalformedRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.MalformedUpdate: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NonCanonicalUpdate: grpc.StatusCode.INVALID_ARGUMENT,
    errors.WrongShape: grpc.StatusCode.INVALID_ARGUMENT,
    errors.WrongDtype: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NonFiniteUpdate: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UpdateTooLarge: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TruncatedStream: grpc.StatusCode.INVALID_ARGUMENT,
    errors.DigestMismatch: grpc.StatusCode.INVALID_ARGUMENT,
    errors.OffsetOutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.InvalidCsr: grpc.StatusCode.INVALID_ARGUMENT,
    errors.BadHeaderSignature: grpc.StatusCode.INVALID_ARGUMENT,
    errors.WrongRoundParameters: grpc.StatusCode.INVALID_ARGUMENT,
    errors.WrongHolder: grpc.StatusCode.INVALID_ARGUMENT,
    errors.SealBroken: grpc.StatusCode.INVALID_ARGUMENT,
    errors.OutOfRangeWord: grpc.StatusCode.INVALID_ARGUMENT,
    errors.CommitmentMismatch: grpc.StatusCode.INVALID_ARGUMENT,
    errors.BadStatement: grpc.StatusCode.INVALID_ARGUMENT,
    errors.EvidenceInsufficient: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnknownTask: grpc.StatusCode.NOT_FOUND,
    errors.UnknownRound: grpc.StatusCode.NOT_FOUND,
    errors.UnknownModelVersion: grpc.StatusCode.NOT_FOUND,
    errors.RoundClosed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DeviceNotSelected: grpc.StatusCode.FAILED_PRECONDITION,
    errors.WrongModelVersion: grpc.StatusCode.FAILED_PRECONDITION,
    errors.WeakerThanPolicy: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotFrozen: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ShareMissing: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RoundPurged: grpc.StatusCode.FAILED_PRECONDITION,
    errors.KeysMissing: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SubmissionConflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.AlreadyContributed: grpc.StatusCode.ALREADY_EXISTS,
    errors.ParametersConflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.ShareConflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.SetConflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.SumConflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.UnauthenticatedDevice: grpc.StatusCode.UNAUTHENTICATED,
    errors.DeviceIdMismatch: grpc.StatusCode.PERMISSION_DENIED,
    errors.EnrollmentTokenInvalid: grpc.StatusCode.PERMISSION_DENIED,
    errors.EnrollmentTokenUsed: grpc.StatusCode.PERMISSION_DENIED,
    errors.EnrollmentDisabled: grpc.StatusCode.PERMISSION_DENIED,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
}

_BY_REASON: Final = {cls.reason: cls for cls in STATUS}


def status_code(error: ServiceError) -> grpc.StatusCode:
    """Return the status that answers `error`; a private subclass has its nearest ancestor's."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def error_detail(error: ServiceError) -> errors_pb2.ErrorDetail:
    """Return the wire form of `error`, the same in a trailer and inside a batch."""
    return errors_pb2.ErrorDetail(
        reason=errors_pb2.ErrorReason.Value(error.reason),
        message=error.message[:MAX_MESSAGE_CHARS],
        retry_after_ms=error.retry_after_ms,
    )


def refusal(reason: str, message: str) -> ServiceError:
    """Return the error of `reason`, for refusals that a package below states by name.

    Raises:
        KeyError: if no class has that reason.
    """
    return _BY_REASON[reason](message)


def internal_error_detail() -> errors_pb2.ErrorDetail:
    """Return what a peer learns of a defect: that there was one."""
    return errors_pb2.ErrorDetail(
        reason=errors_pb2.ErrorReason.INTERNAL_ERROR, message="internal error"
    )
