"""Whether certificates and keys in PEM files can be used together, told as a problem of each."""

from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from security.errors import CredentialError

_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"


def require_certificates(pem: bytes, *, now_s: float) -> list[x509.Certificate]:
    """Read one or more certificates, of which the first is looked at.

    Args:
        pem: a chain, or authorities.
        now_s: seconds since the Unix epoch, when the first must be valid.

    Raises:
        CredentialError: if a certificate cannot be read, there is none, or the first has expired
            or is not valid yet.
    """
    chain = load_certificates(pem)
    first, now = chain[0], datetime.fromtimestamp(now_s, UTC)
    if now >= first.not_valid_after_utc:
        msg = f"the certificate has expired on {first.not_valid_after_utc:%Y-%m-%d}"
        raise CredentialError(msg)
    if now < first.not_valid_before_utc:
        msg = f"the certificate is not valid before {first.not_valid_before_utc:%Y-%m-%d}"
        raise CredentialError(msg)
    return chain


def load_certificates(pem: bytes) -> list[x509.Certificate]:
    """Read every certificate of a file.

    Raises:
        CredentialError: if one cannot be read, or there is none.
    """
    try:
        chain = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        msg = "holds no PEM certificate, or one that is cut off"
        raise CredentialError(msg) from error
    if pem.count(_BEGIN) != len(chain):
        msg = "holds a certificate that is cut off"
        raise CredentialError(msg)
    return chain


def require_private_key(pem: bytes) -> bytes:
    """Read a private key that has no password.

    Returns:
        Its public key (SubjectPublicKeyInfo, DER).

    Raises:
        CredentialError: if it is none.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        msg = "the key is protected by a password: give one without"
        # Without the cause: its text could tell of the key.
        raise CredentialError(msg) from None
    except (ValueError, UnsupportedAlgorithm):
        msg = "holds no PEM private key"
        raise CredentialError(msg) from None
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def belongs_to(public_key: bytes, certificate: x509.Certificate) -> bool:
    """Tell whether a public key, as `require_private_key` gives it, is that of a certificate."""
    return public_key == certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def is_trusted(certificate: x509.Certificate, authorities: list[x509.Certificate]) -> bool:
    """Tell whether a certificate is one of the authorities, or was signed by one of them."""
    return any(certificate == one or _is_signed(certificate, one) for one in authorities)


def _is_signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
