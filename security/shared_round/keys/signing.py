"""Signatures of a shared round: holders sign statements, devices sign the headers of updates."""

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID
from google.protobuf.message import DecodeError

from protos.fedagg.v1 import shared_round_pb2 as pb
from security.certificates.credentials import DeviceKey, device_id_of
from security.errors import (
    BadHeaderSignatureError,
    BadStatementError,
    CredentialError,
    MalformedMessageError,
)
from security.shared_round.keys.holder_keys import HolderSecrets
from security.shared_round.terms.committee import Committee

STATEMENT_LABEL: Final = b"fedagg/holder-statement/1\0"
HEADER_LABEL: Final = b"fedagg/shared-header/1\0"

_MAX_CERTIFICATE_BYTES: Final = 8 * 1024
_CACHED_CERTIFICATES: Final = 4096


def sign_statement(secrets: HolderSecrets, statement: pb.HolderStatement) -> pb.SignedStatement:
    """Sign a statement; the same bytes for the same statement."""
    data = statement.SerializeToString(deterministic=True)
    return pb.SignedStatement(statement=data, signature=secrets.sign(STATEMENT_LABEL + data))


def verify_statement(
    signed: pb.SignedStatement, *, committee: Committee, params_sha256: bytes
) -> pb.HolderStatement:
    """Return a statement that a holder of the committee made in this round.

    Raises:
        BadStatementError: if it cannot be read, is of another round, names no holder of the
            committee, was not signed by that holder, or states nothing.

    Cost: about 130 us, and SHA-512 of the statement.
    """
    try:
        statement = pb.HolderStatement.FromString(signed.statement)
    except DecodeError as error:
        msg = "a statement must be a serialized HolderStatement"
        raise BadStatementError(msg) from error
    if not 1 <= statement.holder <= len(committee.holders):
        msg = f"holder={statement.holder} must satisfy 1 <= holder <= {len(committee.holders)}"
        raise BadStatementError(msg)
    if statement.params_sha256 != params_sha256:
        msg = f"the statement of holder {statement.holder} is of another round"
        raise BadStatementError(msg)
    key = Ed25519PublicKey.from_public_bytes(committee.identity(statement.holder).signing_key)
    try:
        key.verify(signed.signature, STATEMENT_LABEL + signed.statement)
    except InvalidSignature as error:
        msg = f"the statement was not signed by holder {statement.holder}"
        raise BadStatementError(msg) from error
    if statement.WhichOneof("statement") is None:
        msg = f"the statement of holder {statement.holder} states nothing"
        raise BadStatementError(msg)
    return statement


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSigner:
    """A device's key with its certificate: signs the headers of its updates.

    Attributes:
        device_id: the certificate's common name.
        certificate_der: what goes along with each signature.
        key: the certificate's private key.
    """

    device_id: str
    certificate_der: bytes
    key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey = field(repr=False)

    @classmethod
    def from_pem(cls, chain_pem: bytes, key_pem: bytes) -> "DeviceSigner":
        """Read a device's credentials.

        Args:
            chain_pem: the device's certificate, first; others may follow.
            key_pem: its private key, not encrypted.

        Raises:
            CredentialError: if they cannot be used together.
        """
        key = _private_key(key_pem)
        device_id = device_id_of(chain_pem)
        certificate = x509.load_pem_x509_certificate(chain_pem)
        if key.public_key() != certificate.public_key():
            msg = "the device's key does not belong to its certificate"
            raise CredentialError(msg)
        return cls(
            device_id=device_id,
            certificate_der=certificate.public_bytes(serialization.Encoding.DER),
            key=key,
        )

    def sign_header(self, header: pb.SharedHeader) -> pb.SignedHeader:
        """Sign a header as this device."""
        data = header.SerializeToString(deterministic=True)
        signed = HEADER_LABEL + data
        if isinstance(self.key, Ed25519PrivateKey):
            signature = self.key.sign(signed)
        else:
            signature = self.key.sign(signed, ec.ECDSA(hashes.SHA256()))
        return pb.SignedHeader(header=data, signature=signature, certificate=self.certificate_der)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedHeader:
    """A header that a certified device signed.

    Attributes:
        device_id: who signed it, by its certificate; the header says the same.
        header: what was signed.
        header_sha256: SHA-256 of the signed bytes; names this update in votes and receipts.
    """

    device_id: str
    header: pb.SharedHeader
    header_sha256: bytes


class DeviceAuthority:
    """Knows whose device certificates count; remembers those it has verified.

    May be shared by threads.
    """

    def __init__(self, ca_pem: bytes) -> None:
        """Take the certificates of one or more authorities, PEM.

        Raises:
            CredentialError: if there is none, or one is not an authority's.
        """
        try:
            self._authorities = x509.load_pem_x509_certificates(ca_pem)
        except ValueError as error:
            msg = "ca_pem must hold PEM encoded X.509 certificates"
            raise CredentialError(msg) from error
        for authority in self._authorities:
            if not _is_authority(authority):
                name = authority.subject.rfc4514_string()
                msg = f"the certificate of {name[:100]!r} is not an authority's"
                raise CredentialError(msg)
        self._certified = lru_cache(maxsize=_CACHED_CERTIFICATES)(self._certify)

    def verify(self, signed: pb.SignedHeader, *, now_s: float) -> VerifiedHeader:
        """Check who signed a header.

        Args:
            signed: as a device sent it.
            now_s: seconds since the Unix epoch.

        Raises:
            BadHeaderSignatureError: if the certificate is not a device's, not from an authority,
                or not valid at `now_s`; if the signature is not by its key; or if the header
                names another device.
            MalformedMessageError: if what was signed is not a header.

        Cost: 130 us for a signature; about 200 us more for a certificate not seen lately.
        """
        certified = self._certified(signed.certificate)
        if not certified.not_before_s <= now_s < certified.not_after_s:
            msg = f"the certificate of device {certified.device_id!r} is not valid at this time"
            raise BadHeaderSignatureError(msg)
        if not _is_signed(certified.key, signed.signature, HEADER_LABEL + signed.header):
            msg = f"the header was not signed by device {certified.device_id!r}"
            raise BadHeaderSignatureError(msg)
        header = read_header(signed)
        if header.device_id != certified.device_id:
            msg = f"device {certified.device_id!r} signed a header of {header.device_id[:100]!r}"
            raise BadHeaderSignatureError(msg)
        return VerifiedHeader(
            device_id=certified.device_id,
            header=header,
            header_sha256=hashlib.sha256(signed.header).digest(),
        )

    def _certify(self, certificate_der: bytes) -> "_Certified":
        if len(certificate_der) > _MAX_CERTIFICATE_BYTES:
            msg = f"a device's certificate must have at most {_MAX_CERTIFICATE_BYTES} bytes"
            raise BadHeaderSignatureError(msg)
        try:
            certificate = x509.load_der_x509_certificate(certificate_der)
            key = _device_key(certificate)
            device_id = device_id_of(certificate.public_bytes(serialization.Encoding.PEM))
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
            msg = "the header comes without a device's certificate"
            raise BadHeaderSignatureError(msg) from error
        valid = (certificate, self._issuer_of(certificate))
        return _Certified(
            device_id=device_id,
            key=key,
            not_before_s=max(each.not_valid_before_utc.timestamp() for each in valid),
            not_after_s=min(each.not_valid_after_utc.timestamp() for each in valid),
        )

    def _issuer_of(self, certificate: x509.Certificate) -> x509.Certificate:
        for authority in self._authorities:
            try:
                certificate.verify_directly_issued_by(authority)
            except (ValueError, TypeError, InvalidSignature):
                continue
            return authority
        msg = "the device's certificate was issued by no authority known here"
        raise BadHeaderSignatureError(msg)


def read_header(signed: pb.SignedHeader) -> pb.SharedHeader:
    """Read a header without checking who signed it.

    Raises:
        MalformedMessageError: if the bytes are not a header.
    """
    try:
        return pb.SharedHeader.FromString(signed.header)
    except DecodeError as error:
        msg = "header must be a serialized SharedHeader"
        raise MalformedMessageError(msg) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Certified:
    device_id: str
    key: DeviceKey
    not_before_s: float
    not_after_s: float


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return constraints.ca and usage.key_cert_sign


def _device_key(certificate: x509.Certificate) -> DeviceKey:
    """Return the key of a certificate made for TLS clients; raises ValueError for any other."""
    extensions = certificate.extensions
    purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
    is_device = (
        ExtendedKeyUsageOID.CLIENT_AUTH in purposes
        and usage.digital_signature
        and not constraints.ca
    )
    key = certificate.public_key()
    if is_device and isinstance(key, Ed25519PublicKey):
        return key
    if (
        is_device
        and isinstance(key, ec.EllipticCurvePublicKey)
        and isinstance(key.curve, ec.SECP256R1)
    ):
        return key
    msg = "the certificate is not a device's"
    raise ValueError(msg)


def _is_signed(key: DeviceKey, signature: bytes, data: bytes) -> bool:
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, data)
        else:
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _private_key(pem: bytes) -> ec.EllipticCurvePrivateKey | Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        msg = "the device's key is not an unencrypted PEM private key"
        # Without the cause: nothing of a secret may reach a message.
        raise CredentialError(msg) from None
    if isinstance(key, Ed25519PrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    msg = f"the device's key must be ECDSA P-256 or Ed25519, got {type(key).__name__}"
    raise CredentialError(msg)
