"""The public coin, and the votes that fix it."""

import hashlib
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from security.errors import BadStatementError, EvidenceInsufficientError, SharingError
from security.shared_round.opening.ballot_box import BallotBox, agreeing_votes, piece_commitment
from security.shared_round.opening.coins import (
    Coin,
    CoinShare,
    coin_commitments,
    coin_pieces,
    open_coin,
)
from security.shared_round.terms.parameter_facts import Checks
from security.shared_round.terms.parameters import RoundParameters
from tests.security.shared_round.shared_vectors import deal, flip_coin, parameters

SET = hashlib.sha256(b"set").digest()
Votes = dict[int, tuple[bytes, ...]]


def votes_of(params: RoundParameters, set_sha256: bytes = SET) -> Votes:
    keys = deal(params.scheme)
    return {j: coin_commitments(mine, set_sha256) for j, mine in keys.items()}


def shares_of(params: RoundParameters, box: BallotBox) -> dict[int, CoinShare]:
    keys = deal(params.scheme)
    return {
        j: CoinShare(box_sha256=box.sha256, pieces=coin_pieces(keys[j], box.set_sha256))
        for j in box.holders
    }


def without(share: CoinShare, place: int = 0) -> CoinShare:
    """Let a holder lie about one piece."""
    pieces = list(share.pieces)
    pieces[place] = bytes(32)
    return replace(share, pieces=tuple(pieces))


@pytest.mark.parametrize("scheme", [(2, 3), (3, 5), (4, 5), (3, 7), (4, 7)])
def test_any_quorum_of_a_box_opens_the_same_coin(scheme: tuple[int, int]) -> None:
    params = parameters(threshold=scheme[0], holders=scheme[1], checks=Checks.SUM)
    box = BallotBox.of(params, SET, votes_of(params))
    shares = shares_of(params, box)
    coins = {
        open_coin(params, box, {j: shares[j] for j in some}).value
        for some in combinations(params.scheme.points, params.quorum)
    }
    assert len(coins) == 1
    with pytest.raises(EvidenceInsufficientError, match=f"quorum={params.quorum}"):
        open_coin(params, box, {j: shares[j] for j in range(1, params.quorum)})


def test_the_coin_depends_on_the_set_the_box_and_every_piece() -> None:
    params = parameters()
    keys = deal(params.scheme)
    coins = {
        flip_coin(params, keys, SET).value,
        flip_coin(params, keys, bytes(32)).value,
        flip_coin(params, {j: keys[j] for j in (1, 2, 3, 4)}, SET).value,
        *(flip_coin(params, deal(params.scheme, seed), SET).value for seed in (2, 3)),
    }
    assert len(coins) == 5


def test_the_formats_are_those_of_the_protocol() -> None:
    params = parameters(threshold=2, holders=3, quorum=2)
    key = deal(params.scheme)
    piece = coin_pieces(key[1], SET)[0]
    assert piece == key[1].digests(b"fedagg/coin-piece/1\0" + SET)[0]
    assert coin_pieces(key[3], SET)[1] == coin_pieces(key[1], SET)[0]  # both lack not: (2,)
    commitment = hashlib.sha256(b"fedagg/coin-commitment/1\0" + piece).digest()
    assert coin_commitments(key[1], SET)[0] == piece_commitment(piece) == commitment
    box = BallotBox.of(params, SET, {j: coin_commitments(key[j], SET) for j in (3, 1)})
    numbers = b"".join(n.to_bytes(4, "little") for n in (2, 1, 3))
    digest = hashlib.sha256(b"fedagg/ballot-box/1\0" + SET + numbers + b"".join(box.commitments))
    assert box.sha256 == digest.digest()
    coin = open_coin(params, box, shares_of(params, box))
    pieces = [coin_pieces(key[2], SET)[0], *coin_pieces(key[1], SET)]
    value = hashlib.sha256(b"fedagg/coin-value/1\0" + SET + box.sha256 + b"".join(pieces)).digest()
    assert coin.value == value
    assert coin.sha256 == hashlib.sha256(b"fedagg/coin/1\0" + value).digest()


def test_a_wrong_piece_does_not_count_and_its_holder_is_named() -> None:
    params = parameters()
    box = BallotBox.of(params, SET, votes_of(params))
    shares = shares_of(params, box)
    right = open_coin(params, box, shares)
    for place in range(len(shares[2].pieces)):
        coin = open_coin(params, box, shares | {2: without(shares[2], place)})
        assert (coin.value, coin.liars) == (right.value, (2,))
    with pytest.raises(EvidenceInsufficientError, match=r"3 right .* wrong: holders \[2, 4\]"):
        open_coin(params, box, shares | {j: without(shares[j]) for j in (2, 4)})


def test_shares_of_another_box_or_of_strangers_do_not_count() -> None:
    params = parameters()
    votes = votes_of(params)
    box = BallotBox.of(params, SET, {j: votes[j] for j in (1, 2, 3, 4)})
    other = BallotBox.of(params, SET, votes)
    shares = shares_of(params, other)
    with pytest.raises(EvidenceInsufficientError, match="0 right"):
        open_coin(params, box, shares)
    stranger = replace(shares[5], box_sha256=box.sha256)
    inside = {j: replace(shares[j], box_sha256=box.sha256) for j in (1, 2, 3)}
    with pytest.raises(EvidenceInsufficientError, match="3 right"):
        open_coin(params, box, inside | {5: stranger})


def test_two_malicious_holders_cannot_choose_the_coin_of_a_box() -> None:
    """Holders 1 and 2 of (3, 5) learn what 3, 4 and 5 reveal, and answer last as they like."""
    params = parameters()
    box = BallotBox.of(params, SET, votes_of(params))
    shares = shares_of(params, box)
    honest = {j: shares[j] for j in (3, 4, 5)}
    values = set()
    for attempt in range(50):
        forged = {
            j: replace(
                shares[j],
                pieces=tuple(
                    hashlib.sha256(bytes([attempt, j, place])).digest()
                    for place in range(len(shares[j].pieces))
                ),
            )
            for j in (1, 2)
        }
        with pytest.raises(EvidenceInsufficientError):
            open_coin(params, box, honest | forged)
        values.add(open_coin(params, box, honest | {1: shares[1], 2: forged[2]}).value)
    assert values == {open_coin(params, box, shares).value}


def test_votes_that_differ_in_a_piece_make_no_box() -> None:
    params = parameters()
    votes = votes_of(params)
    votes[2] = (bytes(32), *votes[2][1:])
    with pytest.raises(BadStatementError, match="agree"):
        BallotBox.of(params, SET, votes)
    assert agreeing_votes(params.scheme, votes) == (1, 3, 4, 5)
    votes[4] = (b"x" * 32, *votes[4][1:])
    assert len(agreeing_votes(params.scheme, votes)) < params.quorum
    with pytest.raises(EvidenceInsufficientError, match="3 votes"):
        BallotBox.of(params, SET, {j: votes[j] for j in (1, 3, 5)})


def test_a_member_finds_its_own_commitments_in_the_box() -> None:
    params = parameters()
    votes = votes_of(params)
    box = BallotBox.of(params, SET, {j: votes[j] for j in (1, 2, 4, 5)})
    for holder in box.holders:
        box.check_member(holder, votes[holder])
    with pytest.raises(EvidenceInsufficientError, match="holder 3"):
        box.check_member(3, votes[3])
    with pytest.raises(BadStatementError, match="holder 4"):
        box.check_member(4, (bytes(32), *votes[4][1:]))


def test_a_coin_has_32_bytes() -> None:
    with pytest.raises(SharingError, match="32 bytes"):
        Coin(value=b"short")


def coin_of(number: int) -> Coin:
    return Coin(value=hashlib.sha256(number.to_bytes(4, "little")).digest())


def test_shuffles_are_uniform() -> None:
    orders = Counter(tuple(coin_of(i).shuffled("x", 3)) for i in range(6_000))
    assert set(map(tuple, map(sorted, orders))) == {(0, 1, 2)}
    # Chi-square with 5 degrees of freedom: above 30 less than once in 10^5.
    assert sum((count - 1000) ** 2 / 1000 for count in orders.values()) < 30


def test_groups_partition_the_members_evenly() -> None:
    groups = coin_of(1).groups("x", [3, 5, 7, 11, 13, 17, 19], 3)
    assert sorted(map(len, groups)) == [2, 2, 3]
    assert sorted(i for group in groups for i in group) == [3, 5, 7, 11, 13, 17, 19]
    assert all(list(group) == sorted(group) for group in groups)
    assert groups != coin_of(2).groups("x", [3, 5, 7, 11, 13, 17, 19], 3)


def test_signs_have_their_probabilities_and_differ_by_use_and_index() -> None:
    signs = coin_of(1).signs("x", 0, (41, 1023))
    counts = Counter(signs.reshape(-1).tolist())
    total = signs.size
    assert set(counts) == {-1, 0, 1}
    for value, share in ((-1, 0.25), (0, 0.5), (1, 0.25)):
        assert abs(counts[value] - share * total) < 5 * (share * (1 - share) * total) ** 0.5
    assert not np.array_equal(signs, coin_of(1).signs("x", 1, (41, 1023)))
    assert not np.array_equal(signs, coin_of(1).signs("y", 0, (41, 1023)))
    assert np.array_equal(signs, coin_of(1).signs("x", 0, (41, 1023)))
