"""Short linear images of long vectors that keep squared lengths, computed on shares.

A count-sketch whose hash is a rotation: the vector is cut into blocks of k, each block is rotated
by its own random shift, every coordinate gets a random sign, and the blocks are added up. Two
coordinates of one block never meet, two of different blocks meet with probability 1 / k, which is
all that the bound needs: ||Sx||^2 has expectation ||x||^2 and variance at most (2 / k) ||x||^4.

References: Charikar, Chen, Farach-Colton (2002), Finding frequent items in data streams.
"""

import hmac
from collections.abc import Iterable
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from security.errors import SharingError
from security.secret_sharing.expansion import expand_words
from security.secret_sharing.field import M61, MersenneField, Words
from security.secret_sharing.kernels.choice import kernels

MAX_COPIES: Final = 8

_SIGNS_LABEL: Final = b"fedagg/sketch/1\0signs"
_SHIFTS_LABEL: Final = b"fedagg/sketch/1\0shifts"
_STEP_BYTES: Final = 1 << 17


class Sketch:
    """A linear map from `dim` words to `copies` times `sketch_dim`, drawn from a key.

    The same object serves all vectors of a round; it keeps one byte of signs for each coordinate.
    Bit c of byte i of the AES-256-CTR keystream of HMAC(key, signs) is 1 where copy c turns the
    sign of coordinate i. Shifts are the words of 61 bits of HMAC(key, shifts), copy by copy, one
    for each block, modulo `sketch_dim`.
    """

    def __init__(
        self, key: bytes, *, field: MersenneField, dim: int, sketch_dim: int, copies: int = 2
    ) -> None:
        """Draw the map.

        Args:
            key: 32 bytes, public, not known before the vectors are fixed.
            field: of the words.
            dim: coordinates that count; words behind them are left out.
            sketch_dim: k, buckets of each copy.
            copies: independent sketches, 1 to 8.

        Raises:
            SharingError: if an argument is out of range.
        """
        if dim < 1 or sketch_dim < 1 or not 1 <= copies <= MAX_COPIES:
            message = (
                f"dim={dim} and sketch_dim={sketch_dim} must be at least 1, "
                f"copies={copies} in 1..{MAX_COPIES}"
            )
            raise SharingError(message)
        self.field = field
        self.dim = dim
        self.sketch_dim = sketch_dim
        self.copies = copies
        self._signs = _keystream(hmac.digest(key, _SIGNS_LABEL, "sha256"), dim)
        blocks = -(-dim // sketch_dim)
        words = expand_words(hmac.digest(key, _SHIFTS_LABEL, "sha256"), M61, copies * blocks)
        self._shifts = (words % np.uint64(sketch_dim)).reshape(copies, blocks)

    def empty(self) -> Words:
        """Give the sketch of the zero vector, (copies, sketch_dim)."""
        return np.zeros((self.copies, self.sketch_dim), np.uint64)

    def of(self, chunks: Iterable[tuple[int, Words]]) -> Words:
        """Sketch a vector given as chunks (start, words).

        Returns:
            (copies, sketch_dim), canonical.
        """
        state = self.empty()
        for start, words in chunks:
            self.add(state, start, words)
        return state

    def add(self, state: Words, start: int, words: Words) -> None:
        """Add the sketch of one chunk to `state`, in place.

        Args:
            state: (copies, sketch_dim).
            start: position of the first word.
            words: canonical; those at `dim` and behind are left out.

        Raises:
            SharingError: if `start` is negative.

        Cost: about 1 ms for a million words and two copies where it is compiled.
        """
        if start < 0:
            message = f"start={start} must be 0 or more"
            raise SharingError(message)
        counted = words[: max(0, self.dim - start)]
        if len(counted) == 0:
            return
        block, column = divmod(start, self.sketch_dim)
        signs = self._signs[start : start + len(counted)]
        rotation = (signs, self._shifts[:, block:], column)
        kernels().fold_signed(state, counted, rotation, self.field.bits)


def _keystream(key: bytes, count: int) -> NDArray[np.uint8]:
    """Give the first `count` bytes of the AES-256-CTR keystream, uint8."""
    out = np.empty(count, np.uint8)
    zeros = memoryview(bytes(_STEP_BYTES))
    encryptor = Cipher(AES(key), CTR(bytes(16))).encryptor()
    for start in range(0, count, _STEP_BYTES):
        part = out[start : start + _STEP_BYTES].data
        encryptor.update_into(zeros[: len(part)], part)
    return out
