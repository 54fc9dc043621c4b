"""The public coin of a frozen set: random, unknown to all until it cannot be changed any more."""

import hashlib
import hmac
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from security.errors import EvidenceInsufficientError, SharingError
from security.secret_sharing.replicated_keys import ReplicatedKeys
from security.shared_round.opening.ballot_box import BallotBox, piece_commitment
from security.shared_round.terms.parameters import RoundParameters

COIN_BYTES: Final = 32

_PIECE_LABEL: Final = b"fedagg/coin-piece/1\x00"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class CoinShare:
    """What one holder revealed. Its repr does not show the pieces.

    Attributes:
        box_sha256: the ballot box that it revealed them for.
        pieces: 32 bytes for each set that the holder is not in, in the sets' order.
    """

    box_sha256: bytes
    pieces: tuple[bytes, ...] = field(repr=False)


def coin_pieces(keys: ReplicatedKeys, set_sha256: bytes) -> tuple[bytes, ...]:
    """Compute a holder's pieces of the coin of a frozen set.

    Args:
        keys: the holder's.
        set_sha256: the frozen set, which is bound to the round.

    Returns:
        32 bytes for each key of the holder, in the order of `Threshold.pieces_of`.

    Raises:
        SharingError: if a key is missing.
    """
    return keys.digests(_PIECE_LABEL + set_sha256)


def coin_commitments(keys: ReplicatedKeys, set_sha256: bytes) -> tuple[bytes, ...]:
    """Compute what the holder's vote for the set says of its pieces, in the same order.

    Raises:
        SharingError: if a key is missing.
    """
    return tuple(map(piece_commitment, coin_pieces(keys, set_sha256)))


def open_coin(params: RoundParameters, box: BallotBox, shares: Mapping[int, CoinShare]) -> Coin:
    """Open the coin of a ballot box from a quorum of shares.

    Args:
        params: the round.
        box: the votes that fixed the coin.
        shares: by holder. Those of holders outside the box, or of another box, do not count.

    Raises:
        EvidenceInsufficientError: if fewer than `params.quorum` shares are right.

    Guarantees:
        The same coin from any quorum of right shares; holders with wrong ones are named.
    """
    pieces: dict[int, bytes] = {}
    liars = []
    right = 0
    for holder in sorted(shares):
        share = shares[holder]
        if holder not in box.holders or share.box_sha256 != box.sha256:
            continue
        if tuple(map(piece_commitment, share.pieces)) != box.commitments_of(holder):
            liars.append(holder)
            continue
        right += 1
        pieces.update(zip(params.scheme.pieces_of(holder), share.pieces, strict=True))
    if right < params.quorum:
        message = f"{right} right shares of the coin must be at least quorum={params.quorum}"
        message += f"; wrong: holders {liars}"
        raise EvidenceInsufficientError(message)
    digest = hashlib.sha256(_VALUE_LABEL + box.set_sha256 + box.sha256)
    for index in range(params.scheme.num_pieces):
        digest.update(pieces[index])
    return Coin(value=digest.digest(), liars=tuple(liars))
