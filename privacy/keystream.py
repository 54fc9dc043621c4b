"""Random words from a secret key: the AES-256-CTR keystream, and keys derived from keys.

All noise is drawn from here, never from a generator made for simulations: whoever could predict
the noise could subtract it. A run that must be repeatable repeats the key.
"""

from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from privacy.errors import PrivacyError

Words = NDArray[np.uint64]

KEY_BYTES: Final = 32

_SALT: Final = b"fedagg/privacy/1"
_NONCE: Final = bytes(16)  # a key serves one stream, so the counter may start at zero
_STEP_BYTES: Final = 1 << 17  # made at a time: stays in the second-level cache
_ZEROS: Final = memoryview(bytes(_STEP_BYTES))


class Keystream:
    """The words of one key, from the first on. Its repr does not show the key.

    Guarantees:
        The same key gives the same words on every machine, however many are read at a time.
    """

    __slots__ = ("_encryptor",)

    def __init__(self, key: bytes) -> None:
        """Take a key of 32 bytes that serves no other stream.

        Raises:
            PrivacyError: if it has another length.
        """
        check_key(key)
        self._encryptor = Cipher(AES(key), CTR(_NONCE)).encryptor()

    def read_into(self, out: Words) -> None:
        """Overwrite `out`, one contiguous vector, with the next words, as little-endian ones."""
        data = out.data.cast("B")
        for start in range(0, len(data), _STEP_BYTES):
            part = data[start : start + _STEP_BYTES]
            self._encryptor.update_into(_ZEROS[: len(part)], part)
        if not _IS_LITTLE_ENDIAN:
            out.byteswap(inplace=True)

    def words(self, count: int) -> Words:
        """Give the next words, (count,).

        Raises:
            PrivacyError: if `count` is negative.
        """
        if count < 0:
            message = f"count={count} must be at least 0"
            raise PrivacyError(message)
        out = np.empty(count, np.uint64)
        self.read_into(out)
        return out


_IS_LITTLE_ENDIAN: Final = bool(np.array([1], np.uint16).view(np.uint8)[0])


def derive_key(key: bytes, label: bytes, *context: bytes | str | int) -> bytes:
    """Derive an independent key for one purpose.

    Args:
        key: 32 secret bytes.
        label: what the derived key is for; not empty.
        context: what it is bound to: bytes, text, or integers of 0..2^64-1.

    Returns:
        32 bytes: HKDF-SHA256 of the key, whose info names the label and each part of the context
        with its kind and length.

    Raises:
        PrivacyError: if the key has another length, the label is empty or an integer is out of
            range.

    Guarantees:
        Two calls derive one key only if key, label and every part of the context are equal, and
        of one kind: ("ab", "c") and ("a", "bc") differ, so do 1 and "1".

    References: Krawczyk and Eronen (2010), RFC 5869.
    """
    check_key(key)
    if not label:
        message = "label must not be empty"
        raise PrivacyError(message)
    info = b"".join(_named(part) for part in (label, *context))
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=_SALT, info=info).derive(key)


def check_key(key: bytes) -> None:
    """Refuse what is no key.

    Raises:
        PrivacyError: if it has not 32 bytes. The message does not show it.
    """
    if len(key) != KEY_BYTES:
        message = f"key must have {KEY_BYTES} bytes, got {len(key)}"
        raise PrivacyError(message)


def _named(part: bytes | str | int) -> bytes:
    if isinstance(part, bytes):
        kind, data = b"b", part
    elif isinstance(part, str):
        kind, data = b"s", part.encode()
    elif 0 <= part < 1 << 64:
        kind, data = b"i", part.to_bytes(8, "little")
    else:
        message = f"context={part} must be in 0..2^64-1"
        raise PrivacyError(message)
    return kind + len(data).to_bytes(8, "little") + data
