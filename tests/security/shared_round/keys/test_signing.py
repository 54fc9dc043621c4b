"""Who signed what: statements of holders, headers of devices, and every forgery of them."""

import hashlib
import random

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protos.fedagg.v1 import shared_round_pb2 as pb
from security.certificates.credentials import (
    Credentials,
    common_name,
    create_authority,
    issue_device_certificate,
    issue_server_certificate,
    private_key_pem,
)
from security.errors import (
    BadHeaderSignatureError,
    BadStatementError,
    CredentialError,
    MalformedMessageError,
)
from security.shared_round.keys.holder_keys import HolderSecrets
from security.shared_round.keys.signing import (
    HEADER_LABEL,
    STATEMENT_LABEL,
    DeviceAuthority,
    DeviceSigner,
    read_header,
    sign_statement,
    verify_statement,
)
from security.shared_round.terms.committee import Committee

NOW_S = 1_700_000_000
DAY_S = 86_400
AUTHORITY = create_authority(name="Issuer", now_s=NOW_S, valid_for_s=100 * DAY_S)
STRANGER = create_authority(name="Issuer", now_s=NOW_S, valid_for_s=100 * DAY_S)
KNOWN = DeviceAuthority(AUTHORITY.certificate_pem)
HOLDERS = [HolderSecrets.generate(random.Random(seed).randbytes) for seed in range(3)]
COMMITTEE = Committee(
    threshold=2,
    holders=tuple(
        secrets.identity(index=index, name=f"holder {index}", address="")
        for index, secrets in enumerate(HOLDERS, start=1)
    ),
)
ROUND = hashlib.sha256(b"round").digest()


def ed25519_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def signer(
    device_id: str = "phone-1",
    *,
    authority: Credentials = AUTHORITY,
    ed25519: bool = False,
    now_s: float = NOW_S,
) -> DeviceSigner:
    key = Ed25519PrivateKey.generate() if ed25519 else ec.generate_private_key(ec.SECP256R1())
    issued = issue_device_certificate(
        authority, device_id=device_id, key=key.public_key(), now_s=now_s, valid_for_s=DAY_S
    )
    pem = ed25519_pem(key) if isinstance(key, Ed25519PrivateKey) else private_key_pem(key)
    return DeviceSigner.from_pem(issued.chain_pem, pem)


def header(device_id: str = "phone-1") -> pb.SharedHeader:
    return pb.SharedHeader(params_sha256=ROUND, device_id=device_id, nonce=bytes(16))


def receipt(holder: int = 1, params_sha256: bytes = ROUND) -> pb.HolderStatement:
    body = pb.ShareReceipt(device_id="phone-1", header_sha256=bytes(32))
    return pb.HolderStatement(params_sha256=params_sha256, holder=holder, receipt=body)


def verified(signed: pb.SignedStatement) -> pb.HolderStatement:
    return verify_statement(signed, committee=COMMITTEE, params_sha256=ROUND)


def test_a_holders_statement_is_accepted() -> None:
    signed = sign_statement(HOLDERS[1], receipt(holder=2))
    assert verified(signed) == receipt(holder=2)
    assert sign_statement(HOLDERS[1], receipt(holder=2)) == signed


@pytest.mark.parametrize("holder", [0, 4, 2**32 - 1])
def test_a_statement_of_no_holder_is_refused(holder: int) -> None:
    with pytest.raises(BadStatementError, match="1 <= holder <= 3"):
        verified(sign_statement(HOLDERS[0], receipt(holder=holder)))


def test_a_statement_signed_by_another_holder_is_refused() -> None:
    with pytest.raises(BadStatementError, match="not signed by holder 1"):
        verified(sign_statement(HOLDERS[1], receipt(holder=1)))


def test_a_statement_of_another_round_is_refused() -> None:
    with pytest.raises(BadStatementError, match="another round"):
        verified(sign_statement(HOLDERS[0], receipt(params_sha256=bytes(32))))


def test_a_changed_statement_is_refused() -> None:
    signed = sign_statement(HOLDERS[0], receipt())
    other = receipt()
    other.receipt.device_id = "phone-2"
    signed.statement = other.SerializeToString()
    with pytest.raises(BadStatementError, match="not signed"):
        verified(signed)


def test_a_statement_must_state_something() -> None:
    silent = pb.HolderStatement(params_sha256=ROUND, holder=1)
    with pytest.raises(BadStatementError, match="states nothing"):
        verified(sign_statement(HOLDERS[0], silent))


@pytest.mark.parametrize("data", [b"\xff", b"", b"\x0a\xff"])
def test_bytes_that_are_no_statement_are_refused(data: bytes) -> None:
    signature = HOLDERS[0].sign(STATEMENT_LABEL + data)
    with pytest.raises(BadStatementError):
        verified(pb.SignedStatement(statement=data, signature=signature))


def test_a_signature_over_something_else_than_a_statement_is_refused() -> None:
    data = receipt().SerializeToString(deterministic=True)
    for label in (b"", HEADER_LABEL):
        forged = pb.SignedStatement(statement=data, signature=HOLDERS[0].sign(label + data))
        with pytest.raises(BadStatementError, match="not signed"):
            verified(forged)


@pytest.mark.parametrize("ed25519", [False, True])
def test_a_devices_header_is_accepted(ed25519: bool) -> None:
    signed = signer(ed25519=ed25519).sign_header(header())
    for _ in range(2):
        accepted = KNOWN.verify(signed, now_s=NOW_S)
        assert accepted.device_id == "phone-1"
        assert accepted.header == header()
        assert accepted.header_sha256 == hashlib.sha256(signed.header).digest()


def test_several_authorities_may_be_known() -> None:
    both = DeviceAuthority(STRANGER.certificate_pem + AUTHORITY.certificate_pem)
    for authority in (AUTHORITY, STRANGER):
        signed = signer(authority=authority).sign_header(header())
        assert both.verify(signed, now_s=NOW_S).device_id == "phone-1"


@pytest.mark.parametrize("ed25519", [False, True])
def test_a_forged_signature_is_refused(ed25519: bool) -> None:
    genuine = signer(ed25519=ed25519).sign_header(header())
    other = signer(ed25519=ed25519).sign_header(header())
    for signature in (other.signature, b"", genuine.signature[:-1], bytes(64)):
        forged = pb.SignedHeader(
            header=genuine.header, signature=signature, certificate=genuine.certificate
        )
        with pytest.raises(BadHeaderSignatureError, match="not signed"):
            KNOWN.verify(forged, now_s=NOW_S)


def test_a_changed_header_is_refused() -> None:
    signed = signer().sign_header(header())
    changed = header()
    changed.nonce = b"x" * 16
    signed.header = changed.SerializeToString()
    with pytest.raises(BadHeaderSignatureError, match="not signed"):
        KNOWN.verify(signed, now_s=NOW_S)


def test_a_device_signs_for_itself_only() -> None:
    signed = signer("phone-1").sign_header(header("phone-2"))
    with pytest.raises(BadHeaderSignatureError, match="phone-2"):
        KNOWN.verify(signed, now_s=NOW_S)


def test_a_foreign_certificate_is_refused() -> None:
    # The stranger bears the same name: the signature decides.
    signed = signer(authority=STRANGER).sign_header(header())
    with pytest.raises(BadHeaderSignatureError, match="no authority"):
        KNOWN.verify(signed, now_s=NOW_S)


@pytest.mark.parametrize("now_s", [NOW_S - 301, NOW_S + DAY_S, NOW_S + 1000 * DAY_S])
def test_a_certificate_counts_while_it_is_valid(now_s: int) -> None:
    signed = signer().sign_header(header())
    assert KNOWN.verify(signed, now_s=NOW_S + DAY_S - 1).device_id == "phone-1"
    # Remembered certificates expire, too.
    for _ in range(2):
        with pytest.raises(BadHeaderSignatureError, match="not valid at this time"):
            KNOWN.verify(signed, now_s=now_s)


def test_a_server_cannot_pose_as_a_device() -> None:
    server = issue_server_certificate(AUTHORITY, names=["a"], now_s=NOW_S, valid_for_s=DAY_S)
    posing = DeviceSigner.from_pem(server.certificate_pem, server.private_key_pem)
    with pytest.raises(BadHeaderSignatureError, match="without a device's certificate"):
        KNOWN.verify(posing.sign_header(header(posing.device_id)), now_s=NOW_S)


def test_an_authority_cannot_pose_as_a_device() -> None:
    authority = create_authority(name="phone-1", now_s=NOW_S, valid_for_s=DAY_S)
    posing = DeviceSigner.from_pem(authority.certificate_pem, authority.private_key_pem)
    with pytest.raises(BadHeaderSignatureError):
        DeviceAuthority(authority.certificate_pem).verify(posing.sign_header(header()), now_s=NOW_S)


def test_a_device_cannot_certify_others() -> None:
    device = signer("phone-1")
    chain = x509.load_der_x509_certificate(device.certificate_der)
    assert isinstance(device.key, ec.EllipticCurvePrivateKey)
    posing = Credentials(
        certificate_pem=chain.public_bytes(serialization.Encoding.PEM),
        private_key_pem=private_key_pem(device.key),
    )
    signed = signer("phone-2", authority=posing).sign_header(header("phone-2"))
    with pytest.raises(BadHeaderSignatureError, match="no authority"):
        KNOWN.verify(signed, now_s=NOW_S)
    with pytest.raises(CredentialError, match="not an authority's"):
        DeviceAuthority(posing.certificate_pem)


@pytest.mark.parametrize("certificate", [b"", b"\x30", bytes(9000)])
def test_bytes_that_are_no_certificate_are_refused(certificate: bytes) -> None:
    signed = signer().sign_header(header())
    signed.certificate = certificate
    with pytest.raises(BadHeaderSignatureError):
        KNOWN.verify(signed, now_s=NOW_S)


def test_a_signed_text_that_is_no_header_is_refused() -> None:
    device = signer(ed25519=True)
    assert isinstance(device.key, Ed25519PrivateKey)
    data = b"\xff\xff"
    signed = pb.SignedHeader(
        header=data,
        signature=device.key.sign(HEADER_LABEL + data),
        certificate=device.certificate_der,
    )
    with pytest.raises(MalformedMessageError):
        KNOWN.verify(signed, now_s=NOW_S)
    with pytest.raises(MalformedMessageError):
        read_header(signed)


def test_a_key_that_is_not_the_certificates_is_refused() -> None:
    issued = issue_device_certificate(
        AUTHORITY,
        device_id="phone-1",
        key=Ed25519PrivateKey.generate().public_key(),
        now_s=NOW_S,
        valid_for_s=DAY_S,
    )
    with pytest.raises(CredentialError, match="does not belong"):
        DeviceSigner.from_pem(issued.chain_pem, ed25519_pem(Ed25519PrivateKey.generate()))
    for pem in (b"", b"-----BEGIN PRIVATE KEY-----\nAA\n-----END PRIVATE KEY-----\n"):
        with pytest.raises(CredentialError) as refused:
            DeviceSigner.from_pem(issued.chain_pem, pem)
        assert refused.value.__cause__ is None
    with pytest.raises(CredentialError):
        DeviceSigner.from_pem(b"", ed25519_pem(Ed25519PrivateKey.generate()))


def test_devices_sign_with_two_kinds_of_key_only() -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505
    subject = common_name("phone-1")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(
            x509.load_pem_x509_certificate(AUTHORITY.certificate_pem).not_valid_before_utc
        )
        .not_valid_after(
            x509.load_pem_x509_certificate(AUTHORITY.certificate_pem).not_valid_after_utc
        )
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with pytest.raises(CredentialError, match="ECDSA P-256 or Ed25519"):
        DeviceSigner.from_pem(certificate.public_bytes(serialization.Encoding.PEM), pem)


def test_no_authority_at_all_is_refused() -> None:
    with pytest.raises(CredentialError):
        DeviceAuthority(b"")


def test_a_signer_does_not_show_its_key() -> None:
    assert "PrivateKey" not in repr(signer())
