"""Enrollment tokens: genuine ones are read back, everything else is refused."""

import base64

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from security.certificates.enrollment import MAX_TOKEN_CHARS, issue_token, verify_token
from security.errors import (
    CredentialError,
    EnrollmentTokenError,
    SecurityError,
    TokenExpiredError,
    TokenForgedError,
)
from tests.looped import looped

KEY = bytes(range(32))
NONCE = bytes(range(100, 116))
TOKEN = issue_token("phone-1", key=KEY, expires_at_s=1_000, nonce=NONCE)
DEVICE_IDS = st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True)


@pytest.mark.slow
@given(
    device_id=DEVICE_IDS,
    expires_at_s=st.integers(min_value=1, max_value=2**64 - 1),
    nonce=st.binary(min_size=16, max_size=16),
)
def test_a_genuine_token_is_read_back(device_id: str, expires_at_s: int, nonce: bytes) -> None:
    token = issue_token(device_id, key=KEY, expires_at_s=expires_at_s, nonce=nonce)
    assert len(token) <= MAX_TOKEN_CHARS
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    grant = verify_token(token, key=KEY, now_s=0)
    assert grant.device_id == device_id
    assert grant.expires_at_s == expires_at_s
    assert grant.token_id == nonce.hex()


def test_expiry_is_exclusive() -> None:
    assert verify_token(TOKEN, key=KEY, now_s=999.9).device_id == "phone-1"
    with pytest.raises(TokenExpiredError, match="0 s ago"):
        verify_token(TOKEN, key=KEY, now_s=1_000)


@given(position=st.integers(min_value=0), flip=st.integers(min_value=1, max_value=255))
def test_any_changed_byte_is_refused(position: int, flip: int) -> None:
    raw = bytearray(base64.urlsafe_b64decode(TOKEN + "=" * (-len(TOKEN) % 4)))
    raw[position % len(raw)] ^= flip
    token = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    with pytest.raises(TokenForgedError):
        verify_token(token, key=KEY, now_s=0)


@given(st.text(max_size=600))
def test_any_text_is_refused_and_nothing_else_is_raised(text: str) -> None:
    assume(text != TOKEN)
    with pytest.raises(TokenForgedError):
        verify_token(text, key=KEY, now_s=0)


@looped("length", range(len(TOKEN)))
def test_every_prefix_is_refused(length: int) -> None:
    with pytest.raises(TokenForgedError):
        verify_token(TOKEN[:length], key=KEY, now_s=0)


def test_a_token_has_one_form() -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    accepted = []
    for last in alphabet:
        candidate = TOKEN[:-1] + last
        try:
            verify_token(candidate, key=KEY, now_s=0)
        except TokenForgedError:
            continue
        accepted.append(candidate)
    assert accepted == [TOKEN]
    for variant in (TOKEN + "=", TOKEN + "\n", " " + TOKEN, TOKEN + "A"):
        with pytest.raises(TokenForgedError):
            verify_token(variant, key=KEY, now_s=0)


def test_another_key_made_it() -> None:
    with pytest.raises(TokenForgedError):
        verify_token(TOKEN, key=bytes(32), now_s=0)


def test_a_forged_token_is_not_told_that_it_expired() -> None:
    forged = issue_token("phone-1", key=bytes(32), expires_at_s=1, nonce=NONCE)
    with pytest.raises(TokenForgedError):
        verify_token(forged, key=KEY, now_s=2)


@looped(
    "device_id, key, expires_at_s, nonce, match",
    [
        ("", KEY, 1, NONCE, "device_id"),
        ("a" * 65, KEY, 1, NONCE, r"\{1,64\}"),
        ("a/b", KEY, 1, NONCE, "device_id"),
        ("a\n", KEY, 1, NONCE, "device_id"),
        ("é", KEY, 1, NONCE, "device_id"),
        ("a", KEY[:31], 1, NONCE, "32 bytes, got 31"),
        ("a", KEY, -1, NONCE, "expires_at_s=-1"),
        ("a", KEY, 2**64, NONCE, "expires_at_s"),
        ("a", KEY, 1, NONCE[:15], "nonce has 16 bytes, got 15"),
    ],
)
def test_arguments_are_checked(
    device_id: str, key: bytes, expires_at_s: int, nonce: bytes, match: str
) -> None:
    with pytest.raises(CredentialError, match=match):
        issue_token(device_id, key=key, expires_at_s=expires_at_s, nonce=nonce)


def test_a_short_key_never_verifies() -> None:
    with pytest.raises(CredentialError):
        verify_token(TOKEN, key=b"", now_s=0)


def test_one_tree_of_errors() -> None:
    assert issubclass(EnrollmentTokenError, SecurityError)
    assert issubclass(TokenExpiredError, EnrollmentTokenError)
    assert issubclass(SecurityError, ValueError)
