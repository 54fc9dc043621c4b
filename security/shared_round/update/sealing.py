"""How parts are sealed: small frames to one share holder, long bodies in chunks.

A body is a STREAM (Hoang, Reyhanitabar, Rogaway, Vizar, CRYPTO 2015) of AES-256-GCM chunks under a
key that seals nothing else. Chunk i has the nonce

    7 zero bytes | i, 4 bytes big-endian | 1 for the last chunk, else 0

so that a chunk that is lost, moved or repeated does not open.
"""

import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from security.errors import SealBrokenError
from security.shared_round.terms.parameter_fields import CHUNK_BYTES

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 16

_STREAM_NONCE: Final = struct.Struct(">7xIB")
_FRAME_LABEL: Final = b"fedagg/piece/1\0"

Buffer = bytes | bytearray | memoryview


def frame_info(*, params_sha256: bytes, device_id: str, holder: int, nonce: bytes) -> bytes:
    """Return the context that a frame's seal is bound to: round, device, holder and update."""
    name = device_id.encode()
    return b"".join(
        (
            _FRAME_LABEL,
            params_sha256,
            struct.pack("<I", len(name)),
            name,
            struct.pack("<I", holder),
            nonce,
        )
    )


def num_chunks(plaintext_bytes: int) -> int:
    """Return in how many chunks a body of so many bytes, from 1, is sealed."""
    return -(-plaintext_bytes // CHUNK_BYTES)


class ChunkCipher:
    """Seals and opens the chunks of one body, in any order.

    Whoever seals must seal one plaintext only under each key and place: a second one would give
    away the difference of the two.
    """

    __slots__ = ("_aead", "_last")

    def __init__(self, key: bytes, *, chunks: int) -> None:
        """Take the body's key, 32 bytes, and how many chunks it has."""
        self._aead = AESGCM(key)
        self._last = chunks - 1

    def seal_into(self, chunk: int, plaintext: Buffer, out: memoryview) -> None:
        """Write ciphertext and tag of a chunk to `out`, `TAG_BYTES` longer than the plaintext."""
        self._aead.encrypt_into(self._nonce(chunk), plaintext, None, out)

    def open_into(self, chunk: int, ciphertext: Buffer, out: memoryview) -> None:
        """Write the plaintext of a chunk to `out`, `TAG_BYTES` shorter than the ciphertext.

        Raises:
            SealBrokenError: if the chunk is not this one of this body.
        """
        try:
            self._aead.decrypt_into(self._nonce(chunk), ciphertext, None, out)
        except (InvalidTag, ValueError) as error:
            msg = f"chunk {chunk} of the body does not open"
            raise SealBrokenError(msg) from error

    def _nonce(self, chunk: int) -> bytes:
        return _STREAM_NONCE.pack(chunk, chunk == self._last)
