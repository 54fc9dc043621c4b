"""The public coin of a frozen set: random, unknown to all until the set is fixed."""

import hashlib
import hmac
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from security.errors import EvidenceInsufficientError, SharingError
from security.secret_sharing.field import M61, Words
from security.secret_sharing.reconstruction import reconstruct
from security.secret_sharing.replicated_keys import ReplicatedKeys
from security.shared_round.parameters import RoundParameters

COIN_WORDS: Final = 4
"""Field elements that make a coin, of 61 bits in every round: 244 bits."""
COIN_BYTES: Final = 32

_SHARE_LABEL: Final = b"fedagg/coin-share/1\x00"
_VALUE_LABEL: Final = b"fedagg/coin-value/1\x00"
_HASH_LABEL: Final = b"fedagg/coin/1\x00"
_USE_LABEL: Final = b"fedagg/coin-use/1\x00"
_DRAW_BYTES: Final = 8
_U64: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Coin:
    """What a quorum of holders opened for one frozen set.

    Attributes:
        value: 32 bytes.
        liars: holders whose shares were wrong, ascending.
        sha256: what openings and blame name, 32 bytes.
    """

    value: bytes
    liars: tuple[int, ...] = ()
    sha256: bytes = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse a value of another length."""
        if len(self.value) != COIN_BYTES:
            message = f"a coin must have {COIN_BYTES} bytes, got {len(self.value)}"
            raise SharingError(message)
        object.__setattr__(self, "sha256", hashlib.sha256(_HASH_LABEL + self.value).digest())

    def key(self, use: str) -> bytes:
        """Derive 32 bytes for one use; those of different uses are independent."""
        return hmac.digest(self.value, _USE_LABEL + use.encode(), "sha256")

    def shuffled(self, use: str, count: int) -> list[int]:
        """Order 0..count - 1 at random, uniformly and the same for everybody.

        Fisher and Yates' shuffle; 64-bit draws reduced to a range favour none of its numbers by
        more than count / 2^64.
        """
        stream = hashlib.shake_128(self.key(use)).digest(_DRAW_BYTES * max(count, 1))
        draws = [draw for (draw,) in _U64.iter_unpack(stream)]
        order = list(range(count))
        for last in range(count - 1, 0, -1):
            other = draws[last] % (last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def groups(self, use: str, members: Sequence[int], num_groups: int) -> list[tuple[int, ...]]:
        """Deal members to groups at random; sizes differ by at most one.

        Returns:
            `num_groups` tuples, each ascending.
        """
        order = self.shuffled(use, len(members))
        sizes = [len(part) for part in np.array_split(np.arange(len(members)), num_groups)]
        groups: list[tuple[int, ...]] = []
        start = 0
        for size in sizes:
            groups.append(tuple(sorted(members[place] for place in order[start : start + size])))
            start += size
        return groups

    def signs(self, use: str, index: int, shape: tuple[int, int]) -> NDArray[np.int8]:
        """Draw numbers that are -1, 0, 1 with probabilities 1/4, 1/2, 1/4.

        Args:
            use: what for.
            index: of the member; the draws of different members are independent.
            shape: of the result.
        """
        count = shape[0] * shape[1]
        num_bytes = -(-count // 8)
        stream = hashlib.shake_128(self.key(use) + _U64.pack(index)).digest(2 * num_bytes)
        bits = np.unpackbits(np.frombuffer(stream, np.uint8)).view(np.int8)
        # The difference of two fair bits has exactly these probabilities.
        signs: NDArray[np.int8] = bits[:count] - bits[8 * num_bytes : 8 * num_bytes + count]
        return signs.reshape(shape)


def coin_share(params: RoundParameters, keys: ReplicatedKeys, set_sha256: bytes) -> Words:
    """Compute a holder's shares of the coin of a frozen set.

    A pseudo-random sharing of degree t - 1: no t - 1 holders know its value before another opens
    it, and there is one for each set, so that nobody can try again by giving up.

    Args:
        params: the round.
        keys: the holder's.
        set_sha256: the frozen set, which is bound to the round.

    Returns:
        (4,), elements of the 61-bit field, whatever the field of the round.

    References: Cramer, Damgård & Ishai (2005), TCC, Section 3.
    """
    del params  # bound by set_sha256
    return keys.random_share(M61, _SHARE_LABEL + set_sha256, COIN_WORDS)


def open_coin(params: RoundParameters, shares: Mapping[int, Words]) -> Coin:
    """Open the coin from a quorum of shares.

    Args:
        params: the round.
        shares: (4,) of each holder that gave one.

    Raises:
        EvidenceInsufficientError: if fewer than `params.quorum` shares lie on one polynomial.

    Guarantees:
        The same coin from any quorum of right shares. A wrong share among more than a quorum
        changes nothing and its holder is named.
    """
    if len(shares) < params.quorum:
        message = f"{len(shares)} shares of the coin must be at least quorum={params.quorum}"
        raise EvidenceInsufficientError(message)
    try:
        opened = reconstruct(M61, shares, degree=params.threshold - 1)
    except SharingError as error:
        message = f"the shares of the coin do not open it: {error}"
        raise EvidenceInsufficientError(message) from error
    consistent = len(shares) - len(opened.liars)
    if consistent < params.quorum:
        message = f"{consistent} consistent shares of the coin must be at least"
        message += f" quorum={params.quorum}; wrong: holders {list(opened.liars)}"
        raise EvidenceInsufficientError(message)
    value = hashlib.sha256(_VALUE_LABEL + M61.to_wire(opened.values)).digest()
    return Coin(value=value, liars=tuple(sorted(opened.liars)))
