"""A device's request for a certificate: made on the device, checked and granted by the server."""

from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from security.certificates.credentials import (
    Credentials,
    DeviceKey,
    IssuedCertificate,
    common_name,
    common_names,
    issue_device_certificate,
    private_key_pem,
)
from security.certificates.device_id import check_certified_id
from security.errors import SigningRequestError

MAX_CSR_BYTES: Final = 8 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningRequest:
    """A new private key with the request to certify it. Its repr does not show the key."""

    csr_pem: bytes
    private_key_pem: bytes = field(repr=False)


def create_signing_request(device_id: str) -> SigningRequest:
    """Create a device's ECDSA P-256 key and the request to certify it.

    Raises:
        CredentialError: if a certificate cannot carry the device id.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = common_name(check_certified_id(device_id))
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return SigningRequest(
        csr_pem=csr.public_bytes(serialization.Encoding.PEM), private_key_pem=private_key_pem(key)
    )


def sign_request(
    authority: Credentials, csr_pem: bytes, *, device_id: str, now_s: float, valid_for_s: float
) -> IssuedCertificate:
    """Certify the key of a request.

    Only the key is taken from the request; the extensions it asks for are ignored.

    Args:
        authority: who signs.
        csr_pem: PEM, PKCS #10, signed by the key it holds: ECDSA P-256 or Ed25519.
        device_id: who may be certified: the request's only common name.
        now_s: seconds since the Unix epoch.
        valid_for_s: lifetime in seconds, > 0; it ends with the authority's at the latest.

    Raises:
        SigningRequestError: if the request is malformed, too long, signed by another key, holds
            a key of another type, or names anybody but `device_id`.
        CredentialError: if a certificate cannot carry the device id, or the authority cannot be
            used at `now_s`.

    Cost: well under a millisecond: one signature checked, one made.
    """
    key = _requested_key(csr_pem, check_certified_id(device_id))
    return issue_device_certificate(
        authority, device_id=device_id, key=key, now_s=now_s, valid_for_s=valid_for_s
    )


def _requested_key(csr_pem: bytes, device_id: str) -> DeviceKey:
    if len(csr_pem) > MAX_CSR_BYTES:
        msg = f"the request must have at most {MAX_CSR_BYTES} bytes, got {len(csr_pem)}"
        raise SigningRequestError(msg)
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
        names = common_names(csr.subject)
        key = csr.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        msg = "the request is not a PEM encoded PKCS #10 signing request"
        raise SigningRequestError(msg) from error
    # The type first: checking the signature of a huge RSA key would cost the server dearly.
    if not isinstance(key, ed25519.Ed25519PublicKey) and not (
        isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    ):
        msg = f"the request's key must be ECDSA P-256 or Ed25519, got {_describe(key)}"
        raise SigningRequestError(msg)
    if not _is_signed_by_own_key(csr):
        msg = "the request is not signed by the key it holds"
        raise SigningRequestError(msg)
    if names != [device_id]:
        shown = [name[:100] for name in names[:4]]
        msg = f"the request's common name must be {device_id!r} alone, got {shown}"
        raise SigningRequestError(msg)
    return key


def _is_signed_by_own_key(csr: x509.CertificateSigningRequest) -> bool:
    try:
        return csr.is_signature_valid
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False


def _describe(key: object) -> str:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"ECDSA {key.curve.name}"
    return type(key).__name__.lstrip("_").removesuffix("PublicKey")
