"""What the checks in this package refuse.

SecurityError
├── CredentialError         a key, certificate or name cannot be used
├── SigningRequestError     a signing request is malformed, too weak or names somebody else
└── EnrollmentTokenError
    ├── TokenForgedError    not a token, or not one made with this key
    └── TokenExpiredError
"""


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
