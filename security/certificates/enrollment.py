"""One-time enrollment tokens: what an operator hands to a device so that it gets a certificate.

A token is base64url, without padding, of

    byte 0         format, 1
    bytes 1 to 8   expiry, seconds since the Unix epoch, big-endian
    bytes 9 to 24  nonce; in hex it is the token's id
    then           device id, ASCII, 1 to 64 bytes
    last 32 bytes  HMAC-SHA256 of everything before, under the installation's enrollment key

The token alone proves that the operator wanted this device until then. That it enrolls one key
only is for a ledger to enforce, by the token's id. There is one encoding of each token.
"""

import base64
import binascii
import hmac
import struct
from dataclasses import dataclass
from typing import Final

from security.certificates.device_id import check_certified_id
from security.errors import CredentialError, TokenExpiredError, TokenForgedError

MAX_TOKEN_CHARS: Final = 512
MIN_KEY_BYTES: Final = 32
NONCE_BYTES: Final = 16

_FORMAT: Final = 1
_HEAD: Final = struct.Struct(f">BQ{NONCE_BYTES}s")
_TAG_BYTES: Final = 32
_LABEL: Final = b"fedagg enrollment token\x00"
_FORGED: Final = "the enrollment token was not issued by this installation"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrollmentGrant:
    """What a genuine token allows.

    Attributes:
        device_id: the only device it enrolls.
        expires_at_s: seconds since the Unix epoch from which on it is refused.
        token_id: 32 hex digits, different for each token; not a secret.
    """

    device_id: str
    expires_at_s: int
    token_id: str


def issue_token(device_id: str, *, key: bytes, expires_at_s: int, nonce: bytes) -> str:
    """Make a token.

    Args:
        device_id: who may enroll.
        key: the enrollment key, at least 32 bytes.
        expires_at_s: seconds since the Unix epoch, 0 to 2^64 - 1.
        nonce: 16 bytes, new and random for each token.

    Raises:
        CredentialError: if an argument is out of range.
    """
    _check_key(key)
    check_certified_id(device_id)
    if len(nonce) != NONCE_BYTES:
        msg = f"a nonce has {NONCE_BYTES} bytes, got {len(nonce)}"
        raise CredentialError(msg)
    if not 0 <= expires_at_s < 2**64:
        msg = f"expires_at_s={expires_at_s} must satisfy 0 <= expires_at_s < 2**64"
        raise CredentialError(msg)
    content = _HEAD.pack(_FORMAT, expires_at_s, nonce) + device_id.encode("ascii")
    return _encode(content + _tag(key, content))


def verify_token(token: str, *, key: bytes, now_s: float) -> EnrollmentGrant:
    """Check a token.

    Args:
        token: as `issue_token` made it.
        key: the enrollment key.
        now_s: seconds since the Unix epoch.

    Raises:
        TokenForgedError: if it is not a token, or was not made with this key.
        TokenExpiredError: if it has expired; only a genuine token is told so.
        CredentialError: if the key is too short.

    Guarantees:
        Accepts exactly the strings that `issue_token` returns for this key. The comparison takes
        the same time wherever the codes differ.
    """
    _check_key(key)
    content, tag = _decode(token)
    if not hmac.compare_digest(_tag(key, content), tag):
        raise TokenForgedError(_FORGED)
    _, expires_at_s, nonce = _HEAD.unpack_from(content)
    if now_s >= expires_at_s:
        msg = f"the enrollment token expired {now_s - expires_at_s:.0f} s ago"
        raise TokenExpiredError(msg)
    return EnrollmentGrant(
        device_id=content[_HEAD.size :].decode("ascii"),
        expires_at_s=expires_at_s,
        token_id=nonce.hex(),
    )


def _decode(token: str) -> tuple[bytes, bytes]:
    """Split a token into content and code, without trusting either."""
    if len(token) > MAX_TOKEN_CHARS:
        raise TokenForgedError(_FORGED)
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error) as error:
        raise TokenForgedError(_FORGED) from error
    # Base64 has spare bits in its last character: without this a token would have several forms.
    if len(raw) <= _HEAD.size + _TAG_BYTES or _encode(raw) != token or raw[0] != _FORMAT:
        raise TokenForgedError(_FORGED)
    return raw[:-_TAG_BYTES], raw[-_TAG_BYTES:]


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _tag(key: bytes, content: bytes) -> bytes:
    return hmac.digest(key, _LABEL + content, "sha256")


def _check_key(key: bytes) -> None:
    if len(key) < MIN_KEY_BYTES:
        msg = f"an enrollment key has at least {MIN_KEY_BYTES} bytes, got {len(key)}"
        raise CredentialError(msg)
