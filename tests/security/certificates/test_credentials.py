"""Certificates: checked by an X.509 verifier and by TLS, not by the code that made them."""

import datetime as dt
import ipaddress
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from security.certificates.credentials import (
    Credentials,
    create_authority,
    device_id_of,
    issue_server_certificate,
    private_key_pem,
    read_chain,
)
from security.certificates.signing_request import (
    SigningRequest,
    create_signing_request,
    sign_request,
)
from security.errors import CredentialError
from tests.looped import looped

NOW_S = 1_700_000_000
DAY_S = 86_400
AUTHORITY = create_authority(name="Example authority", now_s=NOW_S, valid_for_s=100 * DAY_S)
ROOT = x509.load_pem_x509_certificate(AUTHORITY.certificate_pem)


def at(now_s: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(now_s, dt.UTC)


def verifier(now_s: int = NOW_S) -> verification.PolicyBuilder:
    return verification.PolicyBuilder().store(verification.Store([ROOT])).time(at(now_s))


def enrolled(device_id: str, *, now_s: float = NOW_S) -> tuple[SigningRequest, bytes]:
    request = create_signing_request(device_id)
    issued = sign_request(
        AUTHORITY, request.csr_pem, device_id=device_id, now_s=now_s, valid_for_s=DAY_S
    )
    return request, issued.chain_pem


def server(*names: str, now_s: int = NOW_S, valid_for_s: int = DAY_S) -> Credentials:
    return issue_server_certificate(AUTHORITY, names=names, now_s=now_s, valid_for_s=valid_for_s)


def leaf(chain_pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificates(chain_pem)[0]


@pytest.mark.parametrize(
    "subject",
    [
        x509.DNSName("coordinator"),
        x509.DNSName("a.example.org"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ],
)
def test_a_server_certificate_is_good_for_its_names(subject: x509.DNSName | x509.IPAddress) -> None:
    credentials = server("coordinator", "*.example.org", "127.0.0.1")
    chain = verifier().build_server_verifier(subject).verify(leaf(credentials.certificate_pem), [])
    assert chain[-1] == ROOT


@pytest.mark.parametrize("name", ["other", "a.b.example.org", "example.org"])
def test_a_server_certificate_is_good_for_no_other_name(name: str) -> None:
    credentials = server("coordinator", "*.example.org")
    with pytest.raises(verification.VerificationError):
        verifier().build_server_verifier(x509.DNSName(name)).verify(
            leaf(credentials.certificate_pem), []
        )


def test_a_device_certificate_names_its_device() -> None:
    _, chain_pem = enrolled("phone-1")
    assert device_id_of(chain_pem) == "phone-1"
    assert x509.load_pem_x509_certificates(chain_pem)[1] == ROOT


def test_a_device_cannot_pose_as_a_server() -> None:
    _, chain_pem = enrolled("coordinator")
    with pytest.raises(verification.VerificationError):
        verifier().build_server_verifier(x509.DNSName("coordinator")).verify(leaf(chain_pem), [])


def test_a_server_cannot_pose_as_a_device() -> None:
    usage = leaf(server("a").certificate_pem).extensions.get_extension_for_class(
        x509.ExtendedKeyUsage
    )
    assert list(usage.value) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_a_device_cannot_certify_others() -> None:
    request, chain_pem = enrolled("phone-1")
    posing = Credentials(certificate_pem=chain_pem, private_key_pem=request.private_key_pem)
    forged = issue_server_certificate(posing, names=["a"], now_s=NOW_S, valid_for_s=60)
    with pytest.raises(verification.VerificationError):
        verifier().build_server_verifier(x509.DNSName("a")).verify(
            leaf(forged.certificate_pem), [leaf(chain_pem)]
        )


def test_a_certificate_ends_when_it_says() -> None:
    issued = read_chain(enrolled("phone-1")[1])
    assert issued.not_after_s == NOW_S + DAY_S
    certificate = leaf(issued.chain_pem)
    assert certificate.not_valid_after_utc == at(NOW_S + DAY_S)
    assert certificate.not_valid_before_utc < at(NOW_S)


def test_a_certificate_does_not_outlive_its_authority() -> None:
    credentials = server("a", now_s=NOW_S + 99 * DAY_S, valid_for_s=30 * DAY_S)
    assert leaf(credentials.certificate_pem).not_valid_after_utc == ROOT.not_valid_after_utc


@pytest.mark.parametrize("now_s", [NOW_S - DAY_S, NOW_S + 100 * DAY_S, NOW_S + 200 * DAY_S])
def test_an_authority_outside_its_lifetime_signs_nothing(now_s: int) -> None:
    with pytest.raises(CredentialError, match="not valid at"):
        server("a", now_s=now_s)


def test_certificates_differ_in_serial_number_and_key() -> None:
    first, second = (leaf(enrolled("phone-1")[1]) for _ in range(2))
    assert first.serial_number != second.serial_number
    assert first.public_key() != second.public_key()


def test_private_keys_are_not_shown() -> None:
    for secret in (AUTHORITY, create_signing_request("phone-1")):
        assert "PRIVATE" not in repr(secret)


def test_mutual_tls_with_real_sockets(tmp_path: Path) -> None:
    now_s = int(dt.datetime.now(dt.UTC).timestamp())
    authority = create_authority(name="A", now_s=now_s, valid_for_s=DAY_S)
    served = issue_server_certificate(
        authority, names=["coordinator"], now_s=now_s, valid_for_s=DAY_S
    )
    request = create_signing_request("phone-1")
    issued = sign_request(
        authority, request.csr_pem, device_id="phone-1", now_s=now_s, valid_for_s=DAY_S
    )
    device = Credentials(certificate_pem=issued.chain_pem, private_key_pem=request.private_key_pem)
    ca_data = authority.certificate_pem.decode()

    def context(protocol: int, credentials: Credentials) -> ssl.SSLContext:
        made = ssl.SSLContext(protocol)
        certificate, key = tmp_path / "certificate", tmp_path / "key"
        certificate.write_bytes(credentials.certificate_pem)
        key.write_bytes(credentials.private_key_pem)
        made.load_cert_chain(certificate, key)
        made.load_verify_locations(cadata=ca_data)
        made.verify_mode = ssl.CERT_REQUIRED
        return made

    ours, theirs = socket.socketpair()
    seen: list[str] = []

    def serve() -> None:
        with context(ssl.PROTOCOL_TLS_SERVER, served).wrap_socket(ours, server_side=True) as tls:
            peer = tls.getpeercert(binary_form=True)
            assert peer is not None
            seen.append(device_id_of(ssl.DER_cert_to_PEM_cert(peer).encode()))
            tls.sendall(b"hello")

    # Both contexts read the same two files: the client's is made before the server starts.
    client = context(ssl.PROTOCOL_TLS_CLIENT, device)
    thread = threading.Thread(target=serve)
    thread.start()
    with client.wrap_socket(theirs, server_hostname="coordinator") as tls:
        assert tls.recv(5) == b"hello"
    thread.join()
    assert seen == ["phone-1"]


@looped("names", [[], [""], ["a b"], ["a/b"], ["-a"], ["a" * 64], ["a..b"]])
def test_server_names_are_checked(names: list[str]) -> None:
    with pytest.raises(CredentialError, match="names"):
        server(*names)


@pytest.mark.parametrize("valid_for_s", [0.0, -1.0, float("nan"), 1e300])
def test_lifetimes_are_checked(valid_for_s: float) -> None:
    with pytest.raises(CredentialError, match="valid_for_s"):
        create_authority(name="A", now_s=NOW_S, valid_for_s=valid_for_s)


@pytest.mark.parametrize("name", ["", "a" * 65, "é" * 33])
def test_the_authority_name_is_checked(name: str) -> None:
    with pytest.raises(CredentialError, match="64"):
        create_authority(name=name, now_s=NOW_S, valid_for_s=1)


def named(names: list[str]) -> bytes:
    """A certificate of nobody's authority with these common names."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])

    return (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1, at(0), at(1))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


@pytest.mark.parametrize("names", [[], ["a", "b"], ["a b"], ["é"]])
def test_a_certificate_without_one_device_id_names_no_device(names: list[str]) -> None:
    with pytest.raises(CredentialError):
        device_id_of(named(names))


@pytest.mark.parametrize("pem", [b"", b"garbage", AUTHORITY.private_key_pem])
def test_something_else_is_no_certificate(pem: bytes) -> None:
    for read in (device_id_of, read_chain):
        with pytest.raises(CredentialError, match=r"not a PEM encoded X\.509 certificate"):
            read(pem)


def test_an_authority_needs_its_own_ecdsa_key() -> None:
    other = private_key_pem(ec.generate_private_key(ec.SECP256R1()))
    for key, match in (
        (other, "does not belong"),
        (b"garbage", "not an unencrypted PEM"),
        (_rsa_pem(), "must be ECDSA"),
    ):
        broken = Credentials(certificate_pem=AUTHORITY.certificate_pem, private_key_pem=key)
        with pytest.raises(CredentialError, match=match):
            issue_server_certificate(broken, names=["a"], now_s=NOW_S, valid_for_s=1)


def _rsa_pem() -> bytes:

    return rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
