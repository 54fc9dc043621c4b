"""Everything a service may refuse, as one tree.

Each class states its reason as a string that never changes; `server/wire/status.py` maps every
class to a gRPC status and to the `ErrorReason` of the same name. The message is for a person.

    ServiceError
    ├── InvalidInput            MalformedRequest, MalformedUpdate, NonCanonicalUpdate, WrongShape,
    │                           WrongDtype, NonFiniteUpdate, UpdateTooLarge, TruncatedStream,
    │                           DigestMismatch, OffsetOutOfRange, InvalidCsr, BadHeaderSignature,
    │                           WrongRoundParameters, WrongHolder, SealBroken, OutOfRangeWord,
    │                           CommitmentMismatch, BadStatement, EvidenceInsufficient
    ├── NotFound                UnknownTask, UnknownRound, UnknownModelVersion
    ├── WrongState              RoundClosed, DeviceNotSelected, WrongModelVersion,
    │                           WeakerThanPolicy, NotFrozen, ShareMissing, RoundPurged, KeysMissing
    ├── Conflict                SubmissionConflict, AlreadyContributed, ParametersConflict,
    │                           ShareConflict, SetConflict, SumConflict
    ├── AccessDenied            UnauthenticatedDevice, DeviceIdMismatch, EnrollmentTokenInvalid,
    │                           EnrollmentTokenUsed, EnrollmentDisabled
    └── Unavailable             Overloaded, StoreUnavailable
"""

from typing import ClassVar


class ServiceError(Exception):
    """Root of all refusals.

    Args:
        message: what was wrong, with the values; shown to the peer.
        retry_after_ms: how long the peer should wait before it tries again; 0: no hint.
    """

    reason: ClassVar[str] = ""

    def __init__(self, message: str, *, retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_ms = retry_after_ms


class InvalidInput(ServiceError):
    """The bytes are wrong and stay wrong."""


class MalformedRequest(InvalidInput):
    reason = "MALFORMED_REQUEST"


class MalformedUpdate(InvalidInput):
    reason = "MALFORMED_UPDATE"


class NonCanonicalUpdate(InvalidInput):
    reason = "NON_CANONICAL_UPDATE"


class WrongShape(InvalidInput):
    reason = "WRONG_SHAPE"


class WrongDtype(InvalidInput):
    reason = "WRONG_DTYPE"


class NonFiniteUpdate(InvalidInput):
    reason = "NON_FINITE_UPDATE"


class UpdateTooLarge(InvalidInput):
    reason = "UPDATE_TOO_LARGE"


class TruncatedStream(InvalidInput):
    reason = "TRUNCATED_STREAM"


class DigestMismatch(InvalidInput):
    reason = "DIGEST_MISMATCH"


class OffsetOutOfRange(InvalidInput):
    reason = "OFFSET_OUT_OF_RANGE"


class InvalidCsr(InvalidInput):
    reason = "INVALID_CSR"


class BadHeaderSignature(InvalidInput):
    reason = "BAD_HEADER_SIGNATURE"


class WrongRoundParameters(InvalidInput):
    reason = "WRONG_ROUND_PARAMETERS"


class WrongHolder(InvalidInput):
    reason = "WRONG_HOLDER"


class SealBroken(InvalidInput):
    reason = "SEAL_BROKEN"


class OutOfRangeWord(InvalidInput):
    reason = "OUT_OF_RANGE_WORD"


class CommitmentMismatch(InvalidInput):
    reason = "COMMITMENT_MISMATCH"


class BadStatement(InvalidInput):
    reason = "BAD_STATEMENT"


class EvidenceInsufficient(InvalidInput):
    reason = "EVIDENCE_INSUFFICIENT"


class NotFound(ServiceError):
    """The thing named does not exist."""


class UnknownTask(NotFound):
    reason = "UNKNOWN_TASK"


class UnknownRound(NotFound):
    reason = "UNKNOWN_ROUND"


class UnknownModelVersion(NotFound):
    reason = "UNKNOWN_MODEL_VERSION"


class WrongState(ServiceError):
    """The call does not fit the state of the round; check in again first."""


class RoundClosed(WrongState):
    reason = "ROUND_CLOSED"


class DeviceNotSelected(WrongState):
    reason = "DEVICE_NOT_SELECTED"


class WrongModelVersion(WrongState):
    reason = "WRONG_MODEL_VERSION"


class WeakerThanPolicy(WrongState):
    reason = "WEAKER_THAN_POLICY"


class NotFrozen(WrongState):
    reason = "NOT_FROZEN"


class ShareMissing(WrongState):
    reason = "SHARE_MISSING"


class RoundPurged(WrongState):
    reason = "ROUND_PURGED"


class KeysMissing(WrongState):
    reason = "KEYS_MISSING"


class Conflict(ServiceError):
    """Something else is already stored under this name."""


class SubmissionConflict(Conflict):
    reason = "SUBMISSION_CONFLICT"


class AlreadyContributed(Conflict):
    reason = "ALREADY_CONTRIBUTED"


class ParametersConflict(Conflict):
    reason = "PARAMETERS_CONFLICT"


class ShareConflict(Conflict):
    reason = "SHARE_CONFLICT"


class SetConflict(Conflict):
    reason = "SET_CONFLICT"


class SumConflict(Conflict):
    reason = "SUM_CONFLICT"


class AccessDenied(ServiceError):
    """The peer may not do this."""


class UnauthenticatedDevice(AccessDenied):
    reason = "UNAUTHENTICATED_DEVICE"


class DeviceIdMismatch(AccessDenied):
    reason = "DEVICE_ID_MISMATCH"


class EnrollmentTokenInvalid(AccessDenied):
    reason = "ENROLLMENT_TOKEN_INVALID"


class EnrollmentTokenUsed(AccessDenied):
    reason = "ENROLLMENT_TOKEN_USED"


class EnrollmentDisabled(AccessDenied):
    reason = "ENROLLMENT_DISABLED"


class Unavailable(ServiceError):
    """Nothing is wrong with the call; try again later."""


class Overloaded(Unavailable):
    reason = "OVERLOADED"


class StoreUnavailable(Unavailable):
    reason = "STORE_UNAVAILABLE"
