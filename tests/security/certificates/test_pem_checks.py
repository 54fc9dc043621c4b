"""Certificates and keys that cannot be used together are told apart."""

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from security.certificates.credentials import (
    Credentials,
    create_authority,
    issue_server_certificate,
)
from security.certificates.pem_checks import (
    belongs_to,
    is_trusted,
    load_certificates,
    require_certificates,
    require_private_key,
)
from security.errors import CredentialError

NOW_S = 1_800_000_000.0
DAY_S = 86_400.0


@pytest.fixture(scope="module")
def authority() -> Credentials:
    return create_authority(name="ours", now_s=NOW_S, valid_for_s=10 * DAY_S)


@pytest.fixture(scope="module")
def server(authority: Credentials) -> Credentials:
    return issue_server_certificate(authority, names=["localhost"], now_s=NOW_S, valid_for_s=DAY_S)


def test_a_chain_and_its_key_belong_together(authority: Credentials, server: Credentials) -> None:
    chain = require_certificates(server.certificate_pem, now_s=NOW_S)
    assert len(chain) == 2
    assert belongs_to(require_private_key(server.private_key_pem), chain[0])
    assert not belongs_to(require_private_key(authority.private_key_pem), chain[0])


@pytest.mark.parametrize(
    ("now_s", "told"), [(NOW_S + DAY_S, "has expired on 2027-01"), (NOW_S - DAY_S, "before 2027")]
)
def test_a_certificate_counts_for_a_time(server: Credentials, now_s: float, told: str) -> None:
    with pytest.raises(CredentialError, match=told):
        require_certificates(server.certificate_pem, now_s=now_s)


def test_whatever_is_cut_off_is_told(server: Credentials) -> None:
    pem = server.certificate_pem
    begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
    for length in range(0, len(pem) - 1, 97):
        text = pem[:length]
        if text.count(begin) == text.count(end) > 0:
            continue  # the first certificate is whole, and nothing tells of a second one
        with pytest.raises(CredentialError, match="certificate"):
            load_certificates(text)
    key = server.private_key_pem
    for length in range(0, len(key) - 30, 29):
        with pytest.raises(CredentialError, match="holds no PEM private key"):
            require_private_key(key[:length])


def test_a_key_with_a_password_is_told_and_not_quoted() -> None:
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    with pytest.raises(CredentialError, match="protected by a password") as refused:
        require_private_key(key)
    assert refused.value.__cause__ is None


def test_keys_of_other_kinds_are_taken() -> None:
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    assert require_private_key(key)


def test_trust_is_in_an_authority_and_in_whom_it_signed(
    authority: Credentials, server: Credentials
) -> None:
    other = create_authority(name="ours", now_s=NOW_S, valid_for_s=DAY_S)
    mine = load_certificates(authority.certificate_pem)
    (theirs,) = load_certificates(other.certificate_pem)
    signed = load_certificates(server.certificate_pem)[0]
    assert is_trusted(mine[0], [theirs, *mine])
    assert is_trusted(signed, mine)
    assert not is_trusted(theirs, mine)
    assert not is_trusted(signed, [theirs])
