"""What the checks in this package refuse.

SecurityError
├── CredentialError         a key, certificate or name cannot be used
├── SigningRequestError     a signing request is malformed, too weak or names somebody else
├── EnrollmentTokenError
│   ├── TokenForgedError    not a token, or not one made with this key
│   └── TokenExpiredError
├── SharingError            secrets that cannot be shared, or shares that cannot be opened
│   ├── TooFewSharesError
│   └── InconsistentSharesError
└── SharedRoundError        what a party of a shared round refuses; each has a stable `reason`
    └── MalformedMessageError, BadHeaderSignatureError, WrongRoundParametersError,
        WrongHolderError, SealBrokenError, OutOfRangeWordError, CommitmentMismatchError,
        BadStatementError, EvidenceInsufficientError
"""

from typing import ClassVar


class SecurityError(ValueError):
    """Root of all refusals of this package."""


class CredentialError(SecurityError):
    """A key, a certificate or a name cannot be used."""


class SigningRequestError(SecurityError):
    """A certificate signing request is malformed, too weak, or names somebody else."""


class EnrollmentTokenError(SecurityError):
    """An enrollment token does not enroll anybody."""


class TokenForgedError(EnrollmentTokenError):
    """Not a token, or not one made with this key."""


class TokenExpiredError(EnrollmentTokenError):
    """The token was good until some time ago."""


class SharingError(SecurityError):
    """A secret cannot be shared, or shares cannot be opened."""


class TooFewSharesError(SharingError):
    """Fewer shares than the polynomial's degree needs."""


class InconsistentSharesError(SharingError):
    """The shares do not lie on one polynomial, and which are wrong cannot be told."""


class SharedRoundError(SecurityError):
    """A party of a shared round refuses what another sent."""

    reason: ClassVar[str] = ""


class MalformedMessageError(SharedRoundError):
    """A field is missing, out of range, or in the wrong order."""

    reason = "MALFORMED_REQUEST"


class BadHeaderSignatureError(SharedRoundError):
    """The device's signature or certificate does not hold."""

    reason = "BAD_HEADER_SIGNATURE"


class WrongRoundParametersError(SharedRoundError):
    """Made for another round, or for other parameters of it."""

    reason = "WRONG_ROUND_PARAMETERS"


class WrongHolderError(SharedRoundError):
    """Sealed to another share holder."""

    reason = "WRONG_HOLDER"


class SealBrokenError(SharedRoundError):
    """A sealed part does not open, or its chunks are cut or reordered."""

    reason = "SEAL_BROKEN"


class OutOfRangeWordError(SharedRoundError):
    """A share holds a number that is no field element."""

    reason = "OUT_OF_RANGE_WORD"


class CommitmentMismatchError(SharedRoundError):
    """A part is not the one that the signed header names."""

    reason = "COMMITMENT_MISMATCH"


class BadStatementError(SharedRoundError):
    """A share holder's statement is forged, or of another round."""

    reason = "BAD_STATEMENT"


class EvidenceInsufficientError(SharedRoundError):
    """The statements given do not show what they must."""

    reason = "EVIDENCE_INSUFFICIENT"
