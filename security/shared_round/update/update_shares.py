"""The shares of one update on its device: drawn once, then made chunk by chunk, again and again.

Nothing of a share is kept but the seeds it expands from; every chunk is computed from them and the
update when it is asked for.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from security.errors import SharingError
from security.secret_sharing import fixed_point
from security.secret_sharing.expansion import Expansion, derive_key
from security.secret_sharing.field import Words
from security.shared_round.terms.parameter_fields import CHUNK_BYTES
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.consistency_words import make_extras
from security.shared_round.update.sealing import KEY_BYTES, NONCE_BYTES

# Bits of a limb of exact squares: 2^16 products of two limbs stay below 2^63.
_LIMB_BITS: Final = 23
# Words squared at a time: they stay in the cache.
_STEP_WORDS: Final = 2**16
# Integers below are added up in float64 without rounding, whatever the order.
_EXACT: Final = 2.0**52


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateKeys:
    """What a device draws for one update. Its repr shows none of it.

    Attributes:
        nonce: 16 bytes, public; no two updates have the same.
        seeds: of the pieces that are expanded, in the order of holders or pieces, 32 bytes each.
        content_keys: what each body is sealed with, 32 bytes each.
    """

    nonce: bytes
    seeds: tuple[bytes, ...] = field(repr=False)
    content_keys: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def draw(cls, params: RoundParameters, random_bytes: Callable[[int], bytes]) -> "UpdateKeys":
        """Draw the keys of one update."""
        return cls(
            nonce=random_bytes(NONCE_BYTES),
            seeds=tuple(random_bytes(KEY_BYTES) for _ in range(params.sharing.num_seeds)),
            content_keys=tuple(random_bytes(KEY_BYTES) for _ in range(params.num_bodies)),
        )

    def frame(self, params: RoundParameters, holder: int) -> bytes:
        """Return the keys that a holder is sent, in order."""
        keys = self.seeds + self.content_keys
        return b"".join(keys[number] for number in params.sharing.keys_of(holder))

    def piece_digests(self, params: RoundParameters) -> list[bytes]:
        """Return what the header says of the pieces' keys, where it names them."""
        if not params.sharing.names_pieces:
            return []
        return [hashlib.sha256(key).digest() for key in self.seeds + self.content_keys]


class VectorShares(ABC):
    """The explicit shares of one vector of `params.length` words, in chunks of `CHUNK_BYTES`."""

    def __init__(self, params: RoundParameters, keys: UpdateKeys, *, device_id: str) -> None:
        """Expand the seeds.

        Args:
            params: the round.
            keys: drawn for this vector.
            device_id: whose vector.
        """
        self._params = params
        self._expansions = [
            Expansion(
                derive_key(
                    seed,
                    params_sha256=params.sha256,
                    device_id=device_id,
                    piece=params.sharing.piece(number),
                ),
                params.field,
                params.length,
            )
            for number, seed in enumerate(keys.seeds)
        ]

    def bodies(self, chunk: int) -> list[memoryview]:
        """Return one chunk of every body, in order, as the bytes to seal."""
        params = self._params
        step = CHUNK_BYTES // params.field.word_bytes
        start = chunk * step
        count = min(step, params.length - start)
        secret = self._secret(start, count)
        return params.sharing.explicit(params.field, secret, self._expansions, start)

    @abstractmethod
    def _secret(self, start: int, count: int) -> Words:
        """Return words of what is shared, extras included."""


class UpdateShares(VectorShares):
    """The explicit shares of one update."""

    def __init__(
        self,
        params: RoundParameters,
        vector: NDArray[np.float32],
        keys: UpdateKeys,
        *,
        device_id: str,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        """Check the update and draw the words that follow it.

        Args:
            params: the round.
            vector: (dim,) float32; kept, not copied.
            keys: drawn for this update.
            device_id: whose update.
            random_bytes: random source of the masks.

        Raises:
            SharingError: if the vector has another shape or type, is not finite, or is longer
                than the round's norm bound once encoded.
        """
        square = squared_norm(vector, params)
        if square > params.norm_bound**2:
            msg = (
                f"the encoded update's norm {math.isqrt(square)} must satisfy "
                f"norm <= norm_bound={params.norm_bound}"
            )
            raise SharingError(msg)
        super().__init__(params, keys, device_id=device_id)
        self._vector = vector
        self._extras = make_extras(params, square, random_bytes)

    def _secret(self, start: int, count: int) -> Words:
        """Return what is shared: the encoded update, then the extras."""
        params = self._params
        encoded = fixed_point.encode(
            self._vector[start : start + count],
            fraction_bits=params.fraction_bits,
            field=params.field,
        )
        if len(encoded) == count:
            return encoded
        at = max(0, start - params.dim)
        return np.concatenate([encoded, self._extras[at : at + count - len(encoded)]])


def squared_norm(vector: NDArray[np.float32], params: RoundParameters) -> int:
    """Return the squared L2 norm of the encoded update, exactly, in units of 2^-2f.

    Raises:
        SharingError: if the vector has another shape or type, or cannot be encoded.
    """
    if vector.shape != (params.dim,) or vector.dtype != np.float32:
        msg = f"vector must be float32 of shape ({params.dim},), got {vector.dtype} {vector.shape}"
        raise SharingError(msg)
    return sum(_squares(vector, params))


def _squares(vector: NDArray[np.float32], params: RoundParameters) -> Iterator[int]:
    """Yield the sum of squares of one part after another."""
    scale = float(1 << params.fraction_bits)
    for start in range(0, params.dim, _STEP_WORDS):
        part = vector[start : start + _STEP_WORDS]
        integers = np.multiply(part, scale, dtype=np.float64)
        np.rint(integers, out=integers)
        with np.errstate(over="ignore"):
            square = float(np.dot(integers, integers))
        # Partial sums are integers no larger than the whole, so below the limit none was rounded.
        yield int(square) if square < _EXACT else _large_square(part, params)


def _large_square(part: NDArray[np.float32], params: RoundParameters) -> int:
    """Return the sum of squares from limbs that cannot overflow; refuse what is not finite."""
    words = fixed_point.encode(part, fraction_bits=params.fraction_bits, field=params.field)
    magnitudes = np.abs(fixed_point.centered(words, params.field))
    limbs = []
    while magnitudes.any():
        limbs.append(magnitudes & (2**_LIMB_BITS - 1))
        magnitudes >>= _LIMB_BITS
    return sum(
        int(np.dot(left, right)) << (_LIMB_BITS * (i + j))
        for i, left in enumerate(limbs)
        for j, right in enumerate(limbs)
    )
