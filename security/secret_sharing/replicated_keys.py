"""Shared randomness of the holders without a message: one key for each set of t - 1 of them.

Everybody outside a set A holds its key k_A. A label makes each key a vector of elements r_A, and
pieces r_A make Shamir shares as in `cnf`. No t - 1 holders know all keys, so nobody knows the
value before it is opened.

References: Cramer, Damgård, Ishai (2005), Share conversion, pseudorandom secret-sharing and
applications to secure computation, TCC, sections 4 and 5.
"""

import hmac
from collections.abc import Mapping
from typing import Final

import numpy as np

from security.errors import SharingError
from security.secret_sharing import arithmetic
from security.secret_sharing.cnf import conversion_scale, conversion_weights
from security.secret_sharing.expansion import expand_words
from security.secret_sharing.field import MersenneField, Words
from security.secret_sharing.threshold import Threshold

KEY_BYTES: Final = 32

_RANDOM_LABEL: Final = b"fedagg/prss/1\0"
_ZERO_LABEL: Final = b"fedagg/przs/1\0"


class ReplicatedKeys:
    """One holder's keys. Its repr does not show them."""

    __slots__ = ("_keys", "holder", "threshold")

    def __init__(
        self, threshold: Threshold, holder: int, keys: Mapping[tuple[int, ...], bytes]
    ) -> None:
        """Take the keys that a holder has so far, by the set that lacks them.

        Raises:
            SharingError: if a set is none of t - 1 other holders, or a key has not 32 bytes.
        """
        threshold.check_holder(holder)
        for lacking, key in keys.items():
            if lacking not in threshold.excluded_sets or holder in lacking:
                message = f"set {lacking} must be {threshold.threshold - 1} holders but {holder}"
                raise SharingError(message)
            if len(key) != KEY_BYTES:
                message = f"key of set {lacking} must have {KEY_BYTES} bytes, got {len(key)}"
                raise SharingError(message)
        self.threshold = threshold
        self.holder = holder
        self._keys = dict(keys)

    @property
    def is_complete(self) -> bool:
        """Whether the holder has every key that it should."""
        return len(self._keys) == len(self.threshold.pieces_of(self.holder))

    def random_share(self, field: MersenneField, label: bytes, count: int) -> Words:
        """Give this holder's share of random values that the label names (PRSS).

        Args:
            field: of the words.
            label: the same for all holders; another one gives independent values.
            count: how many values.

        Returns:
            (count,), a share of degree t - 1 of sum_A PRF(k_A, label).

        Raises:
            SharingError: if a key is missing.

        Guarantees:
            The values are uniform to any t - 1 holders, until others open their shares.
        """
        rows, weights = [], []
        for key, weight in self._weighted_keys():
            rows.append(_expand(key, _RANDOM_LABEL + label, field, count))
            weights.append(weight)
        return arithmetic.weighted_sum(field, rows, weights, self._unscale(field))

    def zero_share(self, field: MersenneField, label: bytes, count: int) -> Words:
        """Give this holder's share of zeros, random in all that is not their value (PRZS).

        Args:
            field: of the words.
            label: the same for all holders; never used for two openings.
            count: how many zeros.

        Returns:
            (count,), a share of degree 2 (t - 1) of 0: sum over A and e = 1 .. t - 1 of
            PRF(k_A, label, e) j^e f_A(j).

        Raises:
            SharingError: if a key is missing.

        Guarantees:
            Added to shares of degree 2 (t - 1), it leaves nothing to be seen but the value.
        """
        total = np.zeros(count, np.uint64)
        unscale = self._unscale(field)
        for e in range(1, self.threshold.threshold):
            for key, weight in self._weighted_keys():
                tagged = _ZERO_LABEL + e.to_bytes(4, "little") + label
                words = _expand(key, tagged, field, count)
                factor = weight * self.holder**e * unscale
                arithmetic.add_into(field, total, words, factor)
        return total

    def digests(self, label: bytes) -> tuple[bytes, ...]:
        """Give HMAC-SHA256(k_A, label) of each key, in the order of `Threshold.pieces_of`.

        Args:
            label: what for; its beginning differs from that of any other use.

        Raises:
            SharingError: if a key is missing.
        """
        self._require_all()
        sets = self.threshold.excluded_sets
        return tuple(
            hmac.digest(self._keys[sets[index]], label, "sha256")
            for index in self.threshold.pieces_of(self.holder)
        )

    def _weighted_keys(self) -> list[tuple[bytes, int]]:
        self._require_all()
        weights = conversion_weights(self.threshold, self.holder)
        sets = self.threshold.excluded_sets
        return [(self._keys[sets[piece]], weight) for piece, weight in weights.items()]

    def _require_all(self) -> None:
        if not self.is_complete:
            message = f"holder {self.holder} must have all its keys, got {sorted(self._keys)}"
            raise SharingError(message)

    def _unscale(self, field: MersenneField) -> int:
        return field.inverse(conversion_scale(self.threshold))


def _expand(key: bytes, label: bytes, field: MersenneField, count: int) -> Words:
    return expand_words(hmac.digest(key, label, "sha256"), field, count)
