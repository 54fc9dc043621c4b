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
    """A field is missing, out of range, or in the wrong order."""

    reason = "MALFORMED_REQUEST"


class MalformedUpdate(InvalidInput):
    """The payload is not an encoded update."""

    reason = "MALFORMED_UPDATE"


class NonCanonicalUpdate(InvalidInput):
    """The payload decodes, but is not the one encoding of its value."""

    reason = "NON_CANONICAL_UPDATE"


class WrongShape(InvalidInput):
    """The update's dimension is not the model's."""

    reason = "WRONG_SHAPE"


class WrongDtype(InvalidInput):
    """The type of the update's numbers is not the one that the plan asks for."""

    reason = "WRONG_DTYPE"


class NonFiniteUpdate(InvalidInput):
    """The update holds NaN or infinity."""

    reason = "NON_FINITE_UPDATE"


class UpdateTooLarge(InvalidInput):
    """The bytes declared or received exceed the task's limit."""

    reason = "UPDATE_TOO_LARGE"


class TruncatedStream(InvalidInput):
    """The stream ended before the declared number of bytes."""

    reason = "TRUNCATED_STREAM"


class DigestMismatch(InvalidInput):
    """The received bytes do not hash to the declared SHA-256."""

    reason = "DIGEST_MISMATCH"


class OffsetOutOfRange(InvalidInput):
    """An upload resumes, or a download starts, beyond what is stored: ask, or start at 0."""

    reason = "OFFSET_OUT_OF_RANGE"


class InvalidCsr(InvalidInput):
    """The certificate signing request is malformed or its key too weak."""

    reason = "INVALID_CSR"


class BadHeaderSignature(InvalidInput):
    """The device's signature over its shares' header, or its certificate, does not hold."""

    reason = "BAD_HEADER_SIGNATURE"


class WrongRoundParameters(InvalidInput):
    """Shares or a statement were made for another round, or other parameters of it."""

    reason = "WRONG_ROUND_PARAMETERS"


class WrongHolder(InvalidInput):
    """The share is sealed to another share holder."""

    reason = "WRONG_HOLDER"


class SealBroken(InvalidInput):
    """A sealed part does not open, or its chunks are cut or reordered."""

    reason = "SEAL_BROKEN"


class OutOfRangeWord(InvalidInput):
    """A share holds a number that is no element of the field."""

    reason = "OUT_OF_RANGE_WORD"


class CommitmentMismatch(InvalidInput):
    """A part is not the one that the signed header names."""

    reason = "COMMITMENT_MISMATCH"


class BadStatement(InvalidInput):
    """A share holder's statement is forged, or of another round."""

    reason = "BAD_STATEMENT"


class EvidenceInsufficient(InvalidInput):
    """The statements given do not show what they must, or are too few."""

    reason = "EVIDENCE_INSUFFICIENT"


class NotFound(ServiceError):
    """The thing named does not exist."""


class UnknownTask(NotFound):
    """No task has that name here."""

    reason = "UNKNOWN_TASK"


class UnknownRound(NotFound):
    """The round has not been opened."""

    reason = "UNKNOWN_ROUND"


class UnknownModelVersion(NotFound):
    """The task has no such version."""

    reason = "UNKNOWN_MODEL_VERSION"


class WrongState(ServiceError):
    """The call does not fit the state of the round; check in again first."""


class RoundClosed(WrongState):
    """The round takes no more updates."""

    reason = "ROUND_CLOSED"


class DeviceNotSelected(WrongState):
    """The device is not in the round's cohort."""

    reason = "DEVICE_NOT_SELECTED"


class WrongModelVersion(WrongState):
    """The update was trained from a version that the round does not take."""

    reason = "WRONG_MODEL_VERSION"


class WeakerThanPolicy(WrongState):
    """The round asks for less protection than this party allows."""

    reason = "WEAKER_THAN_POLICY"


class NotFrozen(WrongState):
    """The holder has not voted for this set."""

    reason = "NOT_FROZEN"


class ShareMissing(WrongState):
    """The holder lacks a share of the set."""

    reason = "SHARE_MISSING"


class RoundPurged(WrongState):
    """The round's shares are deleted."""

    reason = "ROUND_PURGED"


class KeysMissing(WrongState):
    """The holder lacks keys of its committee."""

    reason = "KEYS_MISSING"


class Conflict(ServiceError):
    """Something else is already stored under this name."""


class SubmissionConflict(Conflict):
    """The submission id was used with other bytes."""

    reason = "SUBMISSION_CONFLICT"


class AlreadyContributed(Conflict):
    """The device contributed to this round under another submission id."""

    reason = "ALREADY_CONTRIBUTED"


class ParametersConflict(Conflict):
    """The round was announced with other parameters."""

    reason = "PARAMETERS_CONFLICT"


class ShareConflict(Conflict):
    """The device's share of this round is stored under another header."""

    reason = "SHARE_CONFLICT"


class SetConflict(Conflict):
    """The holder voted for another set, or has committed itself."""

    reason = "SET_CONFLICT"


class SumConflict(Conflict):
    """The holder has committed itself to other sums of this round."""

    reason = "SUM_CONFLICT"


class AccessDenied(ServiceError):
    """The peer may not do this."""


class UnauthenticatedDevice(AccessDenied):
    """The caller shows no valid client certificate."""

    reason = "UNAUTHENTICATED_DEVICE"


class DeviceIdMismatch(AccessDenied):
    """The certificate names another device than the request."""

    reason = "DEVICE_ID_MISMATCH"


class EnrollmentTokenInvalid(AccessDenied):
    """The enrollment token is unknown, expired or forged."""

    reason = "ENROLLMENT_TOKEN_INVALID"


class EnrollmentTokenUsed(AccessDenied):
    """The token has already enrolled another key."""

    reason = "ENROLLMENT_TOKEN_USED"


class EnrollmentDisabled(AccessDenied):
    """This server has no certificate authority."""

    reason = "ENROLLMENT_DISABLED"


class Unavailable(ServiceError):
    """Nothing is wrong with the call; try again later."""


class Overloaded(Unavailable):
    """The server has as much to do as it takes on; the hint says when to come back."""

    reason = "OVERLOADED"


class StoreUnavailable(Unavailable):
    """The state store or the blob store did not answer; the write may have happened."""

    reason = "STORE_UNAVAILABLE"
