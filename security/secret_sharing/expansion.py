"""A short secret seed as a long vector of field elements.

The elements of a key are read off a byte stream, word by word: the AES-256-CTR keystream of the
key from counter zero, or SHAKE128(key) for vectors of at most 512 words, where making a cipher
would cost more than the bytes. A word is masked to the bits of the field. The one value that is
then no element, p, is replaced by the first other word of SHAKE128(key || "rej" || position), so
that elements are uniform and every position can be computed alone.
"""

import hashlib
import hmac
from collections.abc import Callable
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from security.errors import SharingError
from security.secret_sharing.field import MersenneField, Words
from security.secret_sharing.kernels.choice import kernels

Raw = NDArray[np.unsignedinteger]

SEED_BYTES: Final = 32
SHORT_WORDS: Final = 512
"""Vectors up to this length are read from SHAKE128."""

_LABEL: Final = b"fedagg/expand/1\0"
_CIPHER_BLOCK_BYTES: Final = 16
_STEP_WORDS: Final = 1 << 14  # keystream made at a time: it stays in the second-level cache
_ZEROS: Final = bytes(_STEP_WORDS * 8)
_FALLBACK_WORDS: Final = 64


def derive_key(seed: bytes, *, params_sha256: bytes, device_id: str, piece: int) -> bytes:
    """Derive the key that a piece of one device is expanded from, in one round.

    Args:
        seed: 32 secret bytes.
        params_sha256: 32 bytes, naming the round's parameters.
        device_id: whose vector is shared.
        piece: the number of the seed's holder, or the index of the piece.

    Returns:
        32 bytes.

    Raises:
        SharingError: if the seed, the digest or the piece is out of range.
    """
    if len(seed) != SEED_BYTES or len(params_sha256) != hashlib.sha256().digest_size:
        message = (
            f"seed and params_sha256 must have 32 bytes, got {len(seed)} and {len(params_sha256)}"
        )
        raise SharingError(message)
    if not 0 <= piece < 1 << 32:
        message = f"piece={piece} must be in 0..2^32-1"
        raise SharingError(message)
    name = device_id.encode()
    context = (
        _LABEL
        + params_sha256
        + len(name).to_bytes(4, "little")
        + name
        + piece.to_bytes(4, "little")
    )
    return hmac.digest(seed, context, "sha256")


class Expansion:
    """The elements of one key; any part of them, in any order. Its repr does not show the key."""

    __slots__ = ("_key", "field", "length")

    def __init__(self, key: bytes, field: MersenneField, length: int) -> None:
        """Take a key of 32 bytes and the length of the whole vector, which chooses the stream.

        Raises:
            SharingError: if the key or the length is out of range.
        """
        if len(key) != SEED_BYTES or length < 0:
            message = f"key must have 32 bytes and length be 0 or more, got {len(key)}, {length}"
            raise SharingError(message)
        self._key = key
        self.field = field
        self.length = length

    def words(self, start: int, count: int) -> Words:
        """Give elements start .. start + count - 1, (count,).

        Raises:
            SharingError: if they are not all within the vector.
        """
        out = np.empty(count if count > 0 else 0, np.uint64)
        if count < 0:
            message = f"count={count} must be 0 or more"
            raise SharingError(message)
        self.read_into(out, start)
        return out

    def read_into(self, out: Words, start: int) -> None:
        """Write elements start .. start + len(out) - 1 to `out`, (count,), contiguous.

        Raises:
            SharingError: if they are not all within the vector.

        Cost: about 1.3 ns a word of 8 bytes, after 10 us for the cipher.
        """
        self.reader(start)(out)

    def reader(self, start: int) -> Callable[[Words], None]:
        """Give a function that fills one array after the other with the elements from `start` on.

        It makes one cipher for all of them. It refuses as `read_into` does.

        Raises:
            SharingError: if `start` is not within the vector.
        """
        fill = self.raw_reader(start)
        position = start
        scratch = np.empty(_STEP_WORDS, self.field.wire_dtype)

        def read(out: Words) -> None:
            nonlocal position
            for at in range(0, len(out), _STEP_WORDS):
                part = out[at : at + _STEP_WORDS]
                in_place = part.dtype == self.field.wire_dtype
                raw = part.view(self.field.wire_dtype) if in_place else scratch[: len(part)]
                fill(raw)
                # Masked while it is in the cache.
                if kernels().mask(part, raw, self.field.bits):
                    self.replace_modulus(part, position)
                position += len(part)

        return read

    def raw_reader(self, start: int) -> Callable[[Raw], None]:
        """Give a function that fills arrays with the stream's words from `start` on, not masked.

        For loops that mask by themselves: a word that is p after masking must then be replaced, see
        `replace_modulus`. Arrays are contiguous, of the field's `wire_dtype`.

        Raises:
            SharingError: if `start` is not within the vector; the function, if its words are not.
        """
        if not 0 <= start <= self.length:
            message = f"start={start} must be in 0..{self.length}"
            raise SharingError(message)
        fill = self._digest(start) if self.length <= SHORT_WORDS else self._keystream(start)
        position = start

        def read(out: Raw) -> None:
            nonlocal position
            if position + len(out) > self.length:
                message = f"words {position}..{position + len(out)} must end by {self.length}"
                raise SharingError(message)
            fill(out)
            position += len(out)

        return read

    def _digest(self, start: int) -> Callable[[Raw], None]:
        """Read raw words off SHAKE128, all of them made at once."""
        stream = hashlib.shake_128(self._key).digest(self.length * self.field.word_bytes)
        words = np.frombuffer(stream, self.field.wire_dtype)
        position = start

        def fill(out: Raw) -> None:
            nonlocal position
            out[:] = words[position : position + len(out)]
            position += len(out)

        return fill

    def _keystream(self, start: int) -> Callable[[Raw], None]:
        """Read raw words off AES-256-CTR: encrypt zeros."""
        block, skipped_bytes = divmod(start * self.field.word_bytes, _CIPHER_BLOCK_BYTES)
        nonce = block.to_bytes(_CIPHER_BLOCK_BYTES, "big")
        encryptor = Cipher(AES(self._key), CTR(nonce)).encryptor()
        encryptor.update(_ZEROS[:skipped_bytes])
        zeros = memoryview(_ZEROS)

        def fill(out: Raw) -> None:
            data = out.data.cast("B")
            for at in range(0, len(data), len(zeros)):
                part = data[at : at + len(zeros)]
                encryptor.update_into(zeros[: len(part)], part)

        return fill

    def replace_modulus(self, words: Words, start: int) -> None:
        """Put elements where masked words are p, which is none; `start` is the first's position."""
        for i in np.flatnonzero(words == np.uint64(self.field.modulus)):
            words[i] = self._fallback(start + int(i))

    def _fallback(self, position: int) -> int:
        """Give the element of a position whose word came out as p: 1 in 2^31, or rarer."""
        stream = hashlib.shake_128(self._key + b"rej" + position.to_bytes(8, "little"))
        num_words = _FALLBACK_WORDS
        while True:
            raw = stream.digest(num_words * self.field.word_bytes)
            for word in np.frombuffer(raw, self.field.wire_dtype):
                element = int(word) & self.field.modulus
                if element != self.field.modulus:
                    return element
            num_words *= 2


def expand_words(key: bytes, field: MersenneField, count: int) -> Words:
    """Give the `count` elements of a key of 32 bytes, (count,)."""
    return Expansion(key, field, count).words(0, count)
