"""Devices and holders of a shared round, in one process and without seals."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from security.secret_sharing.cnf import convert, explicit_piece
from security.secret_sharing.expansion import Expansion
from security.secret_sharing.field import Words
from security.secret_sharing.fixed_point import centered, encode
from security.secret_sharing.replicated_keys import ReplicatedKeys
from security.secret_sharing.seeded import explicit_shares
from security.secret_sharing.threshold import Threshold
from security.shared_round.opening.ballot_box import BallotBox
from security.shared_round.opening.coins import (
    Coin,
    CoinShare,
    coin_commitments,
    coin_pieces,
    open_coin,
)
from security.shared_round.opening.openings import (
    OpeningValues,
    compute_blame,
    compute_openings,
    sum_shares,
)
from security.shared_round.terms.parameter_facts import Checks, ShareFormat
from security.shared_round.terms.parameters import RoundParameters, RoundPlan, plan_parameters
from security.shared_round.update.consistency_words import make_extras

SET_SHA256 = hashlib.sha256(b"a frozen set").digest()


def secure_bytes(seed: int) -> Callable[[int], bytes]:
    """Give a byte source that repeats itself for the same seed."""
    state = hashlib.shake_256(seed.to_bytes(8, "little"))
    calls = 0

    def read(count: int) -> bytes:
        nonlocal calls
        calls += 1
        stream = state.copy()
        stream.update(calls.to_bytes(8, "little"))
        return stream.digest(count)

    return read


def plan(**changes: Any) -> RoundPlan:
    """Plan a small round of (3, 5) with all checks."""
    settings: dict[str, Any] = {
        "task": "digits",
        "round": 3,
        "base_version": 7,
        "model_sha256": "ab" * 32,
        "committee_sha256": b"c" * 32,
        "threshold": 3,
        "holders": 5,
        "dim": 300,
        "clip_norm": 1.0,
        "min_members": 3,
        "max_members": 40,
        "format": ShareFormat.SHAMIR_SEEDED,
        "checks": Checks.DISTANCES,
        "sketch_dim": 1024,
    }
    return RoundPlan(**(settings | changes))


def parameters(**changes: Any) -> RoundParameters:
    """Plan the parameters of such a round."""
    return plan_parameters(plan(**changes))


def update(params: RoundParameters, rng: np.random.Generator, norm: float = 0.99) -> Words:
    """Draw an honest encoded update of an L2 norm."""
    values = rng.standard_normal(params.dim)
    values *= norm / np.linalg.norm(values)
    return encode(values.astype(np.float32), fraction_bits=params.fraction_bits, field=params.field)


def integers(params: RoundParameters, values: Sequence[int] | NDArray[Any]) -> Words:
    """Encode integers of any size, mod p."""
    return np.array([int(value) % params.field.modulus for value in values], dtype=np.uint64)


def squared_norm(params: RoundParameters, words: Words) -> int:
    """Sum the squares of the integers that words stand for."""
    return sum(int(value) ** 2 for value in centered(words, params.field))


def device_vector(
    params: RoundParameters, words: Words, seed: int, claimed: int | None = None
) -> Words:
    """Append the extras, for a claimed squared norm where a device lies about it."""
    norm = squared_norm(params, words) if claimed is None else claimed
    return np.concatenate((words, make_extras(params, norm, secure_bytes(seed))))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldVector:
    """A share in memory, handed out in chunks of a length that fits nothing."""

    words: Words
    chunk: int = 113

    def chunks(self) -> Iterator[tuple[int, Words]]:
        """Give the words in order."""
        for start in range(0, len(self.words), self.chunk):
            yield start, self.words[start : start + self.chunk]


def share(params: RoundParameters, vector: Words, seed: int) -> dict[int, Words]:
    """Share a vector in the round's format: by holder, what `ShareVector` hands out."""
    scheme, field = params.scheme, params.field
    read = secure_bytes(seed ^ 0x5EED)

    def piece() -> Words:
        return Expansion(read(32), field, len(vector)).words(0, len(vector))

    if params.format is ShareFormat.SHAMIR_SEEDED:
        seeded = [piece() for _ in range(params.threshold - 1)]
        explicit = explicit_shares(field, scheme, vector, seeded)
        return dict(enumerate([*seeded, *explicit], start=1))
    pieces = [piece() for _ in range(scheme.num_pieces - 1)]
    pieces.append(explicit_piece(field, vector, pieces))
    return {
        holder: convert(field, scheme, holder, {i: pieces[i] for i in scheme.pieces_of(holder)})
        for holder in scheme.points
    }


def deal(scheme: Threshold, seed: int = 1) -> dict[int, ReplicatedKeys]:
    """Give every holder its replicated keys."""
    read = secure_bytes(seed ^ 0xDEA1)
    keys = {lacking: read(32) for lacking in scheme.excluded_sets}
    return {
        holder: ReplicatedKeys(
            scheme, holder, {lacking: key for lacking, key in keys.items() if holder not in lacking}
        )
        for holder in scheme.points
    }


def flip_coin(
    params: RoundParameters, keys: Mapping[int, ReplicatedKeys], set_sha256: bytes = SET_SHA256
) -> Coin:
    """Open the coin by all the holders whose keys these are."""
    votes = {j: coin_commitments(mine, set_sha256) for j, mine in keys.items()}
    box = BallotBox.of(params, set_sha256, votes)
    shares = {
        j: CoinShare(box_sha256=box.sha256, pieces=coin_pieces(mine, set_sha256))
        for j, mine in keys.items()
    }
    return open_coin(params, box, shares)


@dataclass(slots=True, kw_only=True)
class Committee:
    """All holders of a round, with the shares of its members."""

    params: RoundParameters
    keys: dict[int, ReplicatedKeys]
    shares: dict[int, list[Words]]
    set_sha256: bytes = SET_SHA256

    @classmethod
    def of(cls, params: RoundParameters, vectors: Sequence[Words], seed: int = 1) -> "Committee":
        """Share each vector among the holders."""
        shared = [share(params, vector, 1000 * seed + i) for i, vector in enumerate(vectors)]
        return cls(
            params=params,
            keys=deal(params.scheme, seed),
            shares={j: [each[j] for each in shared] for j in params.scheme.points},
        )

    def vectors(self, holder: int) -> list[HeldVector]:
        """Give a holder's shares."""
        return [HeldVector(words=words) for words in self.shares[holder]]

    def coin(self) -> Coin:
        """Open the coin by all holders."""
        return flip_coin(self.params, self.keys, self.set_sha256)

    def openings(self, coin: Coin) -> dict[int, OpeningValues]:
        """Compute every holder's openings."""
        return {
            j: compute_openings(self.params, coin, self.set_sha256, self.vectors(j), keys)
            for j, keys in self.keys.items()
        }

    def blame(self, coin: Coin, members: Sequence[int]) -> dict[int, Words]:
        """Compute every holder's openings of single members."""
        return {
            j: compute_blame(
                self.params, coin, members, [self.vectors(j)[position] for position in members]
            )
            for j in self.keys
        }

    def sums(
        self, sums: Sequence[Sequence[int]], weights: Mapping[int, int] | None = None
    ) -> dict[int, list[Words]]:
        """Compute every holder's share of sums."""
        given = weights or {}
        return {
            j: sum_shares(
                self.params,
                [(vector, given.get(i, 1)) for i, vector in enumerate(self.vectors(j))],
                sums,
            )
            for j in self.keys
        }


def noised(**changes: object) -> RoundParameters:
    return parameters(**({"noise_multiplier": 1.0} | changes))
