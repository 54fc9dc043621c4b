"""Certificates of one installation: its authority, its servers and its devices.

X.509 v3 with ECDSA P-256 keys made here; a device may also bring an Ed25519 key. The authority
signs end certificates only (path length 0). A server certificate serves TLS servers and a device
certificate TLS clients, so that no device can pose as a server. Time is an argument; keys and
serial numbers come from the operating system's random source.
"""

import hashlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from security.certificates.device_id import check_certified_id
from security.errors import CredentialError

DeviceKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

# A certificate is valid from a little before it was made: clocks of devices lag.
_CLOCK_SKEW: Final = timedelta(minutes=5)
_SERVER_NAME: Final = "fedagg-server"
# RFC 1035 names; a wildcard label may come first, and services of a compose file may hold "_".
_DNS_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
    r"(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A private key with its certificate. Its repr does not show the key.

    Attributes:
        certificate_pem: the certificate; a server's is followed by the authority's.
        private_key_pem: PKCS #8, not encrypted.
    """

    certificate_pem: bytes
    private_key_pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedCertificate:
    """A device's certificate.

    Attributes:
        chain_pem: the device's certificate followed by the authority's.
        not_after_s: seconds since the Unix epoch after which it is refused.
        key_sha256: lower-case hex SHA-256 of the certified public key (SubjectPublicKeyInfo, DER).
    """

    chain_pem: bytes
    not_after_s: int
    key_sha256: str


def create_authority(*, name: str, now_s: float, valid_for_s: float) -> Credentials:
    """Create a certificate authority.

    Args:
        name: its common name, 1 to 64 characters.
        now_s: seconds since the Unix epoch.
        valid_for_s: lifetime in seconds, > 0.

    Raises:
        CredentialError: if an argument is out of range.
    """
    if not 1 <= len(name.encode()) <= 64:
        msg = f"name={name[:100]!r} must have 1 to 64 characters"
        raise CredentialError(msg)
    key = ec.generate_private_key(ec.SECP256R1())
    now, end = _validity(now_s, valid_for_s)
    subject = common_name(name)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Credentials(certificate_pem=_pem(certificate), private_key_pem=private_key_pem(key))


def issue_server_certificate(
    authority: Credentials, *, names: Sequence[str], now_s: float, valid_for_s: float
) -> Credentials:
    """Create a key and certificate for a server.

    Args:
        authority: who signs.
        names: DNS names and IP addresses under which clients reach the server; at least one.
        now_s: seconds since the Unix epoch.
        valid_for_s: lifetime in seconds, > 0; it ends with the authority's at the latest.

    Raises:
        CredentialError: if a name is neither, or the authority cannot be used at `now_s`.
    """
    if not names:
        msg = "names=[] must hold at least one DNS name or IP address"
        raise CredentialError(msg)
    alternatives = tuple(_alternative_name(name) for name in names)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _Subject(
        name=_SERVER_NAME,
        key=key.public_key(),
        usage=ExtendedKeyUsageOID.SERVER_AUTH,
        alternatives=alternatives,
    )
    certificate = _sign(authority, subject, now_s=now_s, valid_for_s=valid_for_s)
    return Credentials(
        certificate_pem=_pem(certificate) + authority.certificate_pem,
        private_key_pem=private_key_pem(key),
    )


def issue_device_certificate(
    authority: Credentials, *, device_id: str, key: DeviceKey, now_s: float, valid_for_s: float
) -> IssuedCertificate:
    """Certify a device's key under its device id.

    The caller has made sure that the device holds the key and may have the id.

    Args:
        authority: who signs.
        device_id: becomes the certificate's only common name.
        key: what is certified.
        now_s: seconds since the Unix epoch.
        valid_for_s: lifetime in seconds, > 0; it ends with the authority's at the latest.

    Raises:
        CredentialError: if a certificate cannot carry the device id, or the authority cannot be
            used at `now_s`.
    """
    subject = _Subject(
        name=check_certified_id(device_id), key=key, usage=ExtendedKeyUsageOID.CLIENT_AUTH
    )
    certificate = _sign(authority, subject, now_s=now_s, valid_for_s=valid_for_s)
    return read_chain(_pem(certificate) + authority.certificate_pem)


def read_chain(chain_pem: bytes) -> IssuedCertificate:
    """Describe a device's chain by its first certificate.

    Raises:
        CredentialError: if it does not start with a certificate.
    """
    certificate = _load_certificate(chain_pem)
    key = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return IssuedCertificate(
        chain_pem=chain_pem,
        not_after_s=int(certificate.not_valid_after_utc.timestamp()),
        key_sha256=hashlib.sha256(key).hexdigest(),
    )


def device_id_of(certificate_pem: bytes) -> str:
    """Return the device that a certificate names.

    The caller has verified the certificate, as TLS does for a peer; this only reads it.

    Raises:
        CredentialError: if it is not a certificate, or has no single common name of the right form.
    """
    names = common_names(_load_certificate(certificate_pem).subject)
    if len(names) != 1:
        msg = f"a device certificate must have one common name, got {len(names)}"
        raise CredentialError(msg)
    return check_certified_id(names[0])


def common_name(name: str) -> x509.Name:
    """Return the subject that holds this common name and nothing else."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def common_names(subject: x509.Name) -> list[str]:
    """Return every common name of a subject; a well-formed one has a single one."""
    return [str(name.value) for name in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]


def private_key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a key as PKCS #8, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What an end certificate is about."""

    name: str
    key: DeviceKey
    usage: x509.ObjectIdentifier
    alternatives: tuple[x509.GeneralName, ...] = ()


def _sign(
    authority: Credentials, subject: _Subject, *, now_s: float, valid_for_s: float
) -> x509.Certificate:
    issuer, issuer_key = _load_authority(authority)
    now, end = _validity(now_s, valid_for_s)
    if not issuer.not_valid_before_utc <= now < issuer.not_valid_after_utc:
        msg = f"the authority's certificate is not valid at {now.isoformat()}"
        raise CredentialError(msg)
    builder = (
        x509.CertificateBuilder()
        .subject_name(common_name(subject.name))
        .issuer_name(issuer.subject)
        .public_key(subject.key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(min(end, issuer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([subject.usage]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(subject.key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if subject.alternatives:
        names = x509.SubjectAlternativeName(subject.alternatives)
        builder = builder.add_extension(names, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _load_authority(
    authority: Credentials,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate = _load_certificate(authority.certificate_pem)
    try:
        key = serialization.load_pem_private_key(authority.private_key_pem, password=None)
    except (ValueError, TypeError) as error:
        msg = "the authority's key is not an unencrypted PEM private key"
        raise CredentialError(msg) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        msg = f"the authority's key must be ECDSA, got {type(key).__name__}"
        raise CredentialError(msg)
    if key.public_key() != certificate.public_key():
        msg = "the authority's key does not belong to its certificate"
        raise CredentialError(msg)
    return certificate, key


def _load_certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        msg = "not a PEM encoded X.509 certificate"
        raise CredentialError(msg) from error


def _validity(now_s: float, valid_for_s: float) -> tuple[datetime, datetime]:
    if not valid_for_s > 0:
        msg = f"valid_for_s={valid_for_s} must be > 0"
        raise CredentialError(msg)
    try:
        now = datetime.fromtimestamp(now_s, UTC)
        return now, now + timedelta(seconds=valid_for_s)
    except (ValueError, OverflowError, OSError) as error:
        msg = f"now_s={now_s} with valid_for_s={valid_for_s} is no instant of the calendar"
        raise CredentialError(msg) from error


def _alternative_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if _DNS_NAME.fullmatch(name) is None:
        msg = f"names holds {name[:100]!r}, which is neither a DNS name nor an IP address"
        raise CredentialError(msg)
    return x509.DNSName(name)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
