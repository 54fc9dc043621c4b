"""Signing requests: who is certified, and every way of asking wrongly."""

import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from security.certificates.credentials import IssuedCertificate, create_authority
from security.certificates.signing_request import (
    MAX_CSR_BYTES,
    create_signing_request,
    sign_request,
)
from security.errors import CredentialError, SigningRequestError

NOW_S = 1_700_000_000
AUTHORITY = create_authority(name="Example authority", now_s=NOW_S, valid_for_s=86_400)
KEY = ec.generate_private_key(ec.SECP256R1())

SigningKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def builder(*names: str) -> x509.CertificateSigningRequestBuilder:
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names]
    return x509.CertificateSigningRequestBuilder(x509.Name(subject))


def request(key: SigningKey, *names: str) -> bytes:
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder(*names).sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def sign(csr_pem: bytes, device_id: str = "phone-1") -> IssuedCertificate:
    return sign_request(AUTHORITY, csr_pem, device_id=device_id, now_s=NOW_S, valid_for_s=60)


@pytest.mark.parametrize("key", [KEY, ed25519.Ed25519PrivateKey.generate()])
def test_the_key_of_the_request_is_certified(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey,
) -> None:
    issued = sign(request(key, "phone-1"))
    certificate, root = x509.load_pem_x509_certificates(issued.chain_pem)
    certificate.verify_directly_issued_by(root)
    assert certificate.public_key() == key.public_key()
    spki = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert issued.key_sha256 == hashlib.sha256(spki).hexdigest()


def test_extensions_of_the_request_are_ignored() -> None:
    csr = (
        builder("phone-1")
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("coordinator")]), critical=False)
        .sign(KEY, hashes.SHA256())
    )
    issued = sign(csr.public_bytes(serialization.Encoding.PEM))
    extensions = x509.load_pem_x509_certificate(issued.chain_pem).extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(x509.ExtensionNotFound):
        extensions.get_extension_for_class(x509.SubjectAlternativeName)


@pytest.mark.parametrize(
    "names", [(), ("phone-2",), ("phone-1", "phone-2"), ("phone-1", "phone-1"), ("PHONE-1",)]
)
def test_a_request_names_the_device_and_nobody_else(names: tuple[str, ...]) -> None:
    with pytest.raises(SigningRequestError, match="common name must be 'phone-1' alone"):
        sign(request(KEY, *names))


@pytest.mark.parametrize(
    ("key", "described"),
    [
        (rsa.generate_private_key(65537, 2048), "RSA"),
        (ec.generate_private_key(ec.SECP384R1()), "ECDSA secp384r1"),
        (ec.generate_private_key(ec.SECP256K1()), "ECDSA secp256k1"),
    ],
)
def test_other_keys_are_refused(key: SigningKey, described: str) -> None:
    with pytest.raises(SigningRequestError, match=f"got {described}"):
        sign(request(key, "phone-1"))


def test_a_request_signed_by_another_key_is_refused() -> None:
    der = builder("phone-1").sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    own = KEY.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    other = (
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    )
    swapped = x509.load_der_x509_csr(der.replace(own, other))
    with pytest.raises(SigningRequestError, match="not signed by the key it holds"):
        sign(swapped.public_bytes(serialization.Encoding.PEM))


def test_a_request_is_at_most_8_kib_long() -> None:
    csr_pem = request(KEY, "phone-1")
    padded = csr_pem + b"\n" * (MAX_CSR_BYTES - len(csr_pem))
    assert sign(padded).key_sha256 == sign(csr_pem).key_sha256
    with pytest.raises(SigningRequestError, match="at most 8192 bytes, got 8193"):
        sign(padded + b"\n")


@given(st.one_of(st.binary(max_size=200), st.integers(min_value=0, max_value=400)))
def test_garbage_is_refused_and_nothing_else_is_raised(garbage: bytes | int) -> None:
    csr_pem = request(KEY, "phone-1")
    broken = garbage if isinstance(garbage, bytes) else csr_pem[: min(garbage, len(csr_pem) - 30)]
    with pytest.raises(SigningRequestError):
        sign(broken)


def test_a_device_makes_a_request_that_is_granted() -> None:
    made = create_signing_request("phone-1")
    issued = sign(made.csr_pem)
    key = serialization.load_pem_private_key(made.private_key_pem, None)
    assert x509.load_pem_x509_certificate(issued.chain_pem).public_key() == key.public_key()


@pytest.mark.parametrize("device_id", ["", "a" * 65, "a/b", "a b"])
def test_device_ids_are_checked_on_both_sides(device_id: str) -> None:
    with pytest.raises(CredentialError, match="device_id"):
        create_signing_request(device_id)
    with pytest.raises(CredentialError, match="device_id"):
        sign(request(KEY, "phone-1"), device_id)
