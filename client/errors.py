"""What can go wrong on a device, and what the server's refusals mean.

FedaggError
├── ClientConfigError            the configuration is invalid
├── TrainingError                the trainer failed, or returned weights that cannot be sent
├── ModelIntegrityError          the downloaded model is not the announced one
├── ProtocolError                the server answered against the protocol
├── RoundDeadlineError           the round ends before the step could be done
├── TransportError               no answer: connection lost or timed out        (retryable)
└── RefusedError                 the server said no, and why
    ├── InvalidRequestError      never send the same request again
    ├── InvalidUpdateError       never send the same update again
    ├── NotFoundError            unknown task, round or model version
    ├── PreconditionError        check in again first
    │   └── RoundClosedError     the round takes no more updates
    ├── ConflictError            the server holds another answer of this device
    ├── AuthenticationError      the server does not accept who the device says it is
    ├── ServiceUnavailableError  back off as long as the hint says              (retryable)
    └── ServerInternalError      a defect of the server
"""

from enum import Enum
from typing import ClassVar, Final


class ErrorReason(Enum):
    """Why the server refused a call; the numbers are those of `fedagg.v1.ErrorReason`."""

    ERROR_REASON_UNSPECIFIED = 0
    MALFORMED_REQUEST = 1
    MALFORMED_UPDATE = 2
    NON_CANONICAL_UPDATE = 3
    WRONG_SHAPE = 4
    WRONG_DTYPE = 5
    NON_FINITE_UPDATE = 6
    UPDATE_TOO_LARGE = 7
    TRUNCATED_STREAM = 8
    DIGEST_MISMATCH = 9
    OFFSET_OUT_OF_RANGE = 10
    INVALID_CSR = 11
    UNKNOWN_TASK = 20
    UNKNOWN_ROUND = 21
    UNKNOWN_MODEL_VERSION = 22
    ROUND_CLOSED = 30
    DEVICE_NOT_SELECTED = 31
    WRONG_MODEL_VERSION = 32
    SUBMISSION_CONFLICT = 40
    ALREADY_CONTRIBUTED = 41
    UNAUTHENTICATED_DEVICE = 50
    DEVICE_ID_MISMATCH = 51
    ENROLLMENT_TOKEN_INVALID = 52
    ENROLLMENT_TOKEN_USED = 53
    ENROLLMENT_DISABLED = 54
    OVERLOADED = 60
    STORE_UNAVAILABLE = 61
    INTERNAL_ERROR = 70
    BAD_HEADER_SIGNATURE = 80
    WRONG_ROUND_PARAMETERS = 81
    WRONG_HOLDER = 82
    SEAL_BROKEN = 83
    OUT_OF_RANGE_WORD = 84
    COMMITMENT_MISMATCH = 85
    BAD_STATEMENT = 86
    EVIDENCE_INSUFFICIENT = 87
    WEAKER_THAN_POLICY = 90
    NOT_FROZEN = 91
    SHARE_MISSING = 92
    ROUND_PURGED = 93
    KEYS_MISSING = 94
    PARAMETERS_CONFLICT = 100
    SHARE_CONFLICT = 101
    SET_CONFLICT = 102
    SUM_CONFLICT = 103


class FedaggError(Exception):
    """Root of every error this package raises.

    Attributes:
        retryable: whether the same call may succeed later without any change.
        retry_after_s: the server's hint, seconds to wait before trying again; None: no hint.
    """

    retryable: ClassVar[bool] = False
    retry_after_s: float | None = None


class ClientConfigError(FedaggError, ValueError):
    """A field of the configuration is out of range or contradicts another."""


class TrainingError(FedaggError):
    """The trainer raised, or its result is not a finite update of the model's shape."""


class ModelIntegrityError(FedaggError):
    """The downloaded bytes are not the model that the assignment announced."""


class ProtocolError(FedaggError):
    """The server's answer misses a field or contradicts the request."""


class RoundDeadlineError(FedaggError):
    """The round stops taking updates before the step could be done."""


class TransportError(FedaggError):
    """No answer arrived. Whether the server acted is unknown; every call may be repeated."""

    retryable: ClassVar[bool] = True


class RefusedError(FedaggError):
    """The server refused the call.

    Attributes:
        reason: the stable reason; ERROR_REASON_UNSPECIFIED where the peer gave none (a proxy).
    """

    def __init__(
        self, reason: ErrorReason, message: str, *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(f"{reason.name}: {message}" if message else reason.name)
        self.reason = reason
        self.retry_after_s = retry_after_s


class InvalidRequestError(RefusedError):
    """The request can never be accepted as it is."""


class InvalidUpdateError(RefusedError):
    """The update can never be accepted as it is."""


class NotFoundError(RefusedError):
    """The task, round or model version does not exist."""


class PreconditionError(RefusedError):
    """The device acts on a state that is gone: it has to check in again."""


class RoundClosedError(PreconditionError):
    """The round no longer takes updates."""


class ConflictError(RefusedError):
    """The server holds an answer of this device that differs from the one sent."""


class AuthenticationError(RefusedError):
    """The server does not accept the device's identity or token."""


class ServiceUnavailableError(RefusedError):
    """The server is too busy or cannot reach its store."""

    retryable: ClassVar[bool] = True


class ServerInternalError(RefusedError):
    """A defect of the server, or a refusal this version of the client does not know."""


ERROR_CLASSES: Final[dict[ErrorReason, type[RefusedError]]] = {
    ErrorReason.ERROR_REASON_UNSPECIFIED: ServerInternalError,
    ErrorReason.MALFORMED_REQUEST: InvalidRequestError,
    ErrorReason.MALFORMED_UPDATE: InvalidUpdateError,
    ErrorReason.NON_CANONICAL_UPDATE: InvalidUpdateError,
    ErrorReason.WRONG_SHAPE: InvalidUpdateError,
    ErrorReason.WRONG_DTYPE: InvalidUpdateError,
    ErrorReason.NON_FINITE_UPDATE: InvalidUpdateError,
    ErrorReason.UPDATE_TOO_LARGE: InvalidUpdateError,
    ErrorReason.TRUNCATED_STREAM: InvalidRequestError,
    ErrorReason.DIGEST_MISMATCH: InvalidRequestError,
    ErrorReason.OFFSET_OUT_OF_RANGE: InvalidRequestError,
    ErrorReason.INVALID_CSR: InvalidRequestError,
    ErrorReason.UNKNOWN_TASK: NotFoundError,
    ErrorReason.UNKNOWN_ROUND: NotFoundError,
    ErrorReason.UNKNOWN_MODEL_VERSION: NotFoundError,
    ErrorReason.ROUND_CLOSED: RoundClosedError,
    ErrorReason.DEVICE_NOT_SELECTED: PreconditionError,
    ErrorReason.WRONG_MODEL_VERSION: PreconditionError,
    ErrorReason.SUBMISSION_CONFLICT: ConflictError,
    ErrorReason.ALREADY_CONTRIBUTED: ConflictError,
    ErrorReason.UNAUTHENTICATED_DEVICE: AuthenticationError,
    ErrorReason.DEVICE_ID_MISMATCH: AuthenticationError,
    ErrorReason.ENROLLMENT_TOKEN_INVALID: AuthenticationError,
    ErrorReason.ENROLLMENT_TOKEN_USED: AuthenticationError,
    ErrorReason.ENROLLMENT_DISABLED: AuthenticationError,
    ErrorReason.OVERLOADED: ServiceUnavailableError,
    ErrorReason.STORE_UNAVAILABLE: ServiceUnavailableError,
    ErrorReason.INTERNAL_ERROR: ServerInternalError,
    ErrorReason.BAD_HEADER_SIGNATURE: InvalidUpdateError,
    ErrorReason.WRONG_ROUND_PARAMETERS: InvalidUpdateError,
    ErrorReason.WRONG_HOLDER: InvalidUpdateError,
    ErrorReason.SEAL_BROKEN: InvalidUpdateError,
    ErrorReason.OUT_OF_RANGE_WORD: InvalidUpdateError,
    ErrorReason.COMMITMENT_MISMATCH: InvalidUpdateError,
    ErrorReason.BAD_STATEMENT: InvalidRequestError,
    ErrorReason.EVIDENCE_INSUFFICIENT: InvalidRequestError,
    ErrorReason.WEAKER_THAN_POLICY: PreconditionError,
    ErrorReason.NOT_FROZEN: PreconditionError,
    ErrorReason.SHARE_MISSING: PreconditionError,
    ErrorReason.ROUND_PURGED: PreconditionError,
    ErrorReason.KEYS_MISSING: PreconditionError,
    ErrorReason.PARAMETERS_CONFLICT: ConflictError,
    ErrorReason.SHARE_CONFLICT: ConflictError,
    ErrorReason.SET_CONFLICT: ConflictError,
    ErrorReason.SUM_CONFLICT: ConflictError,
}
