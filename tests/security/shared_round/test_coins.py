"""The public coin."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from security.errors import EvidenceInsufficientError, SharingError
from security.secret_sharing.field import Words
from security.shared_round.coins import Coin, coin_share, open_coin
from tests.security.shared_round.shared_vectors import deal, parameters

SET = hashlib.sha256(b"set").digest()


def shares() -> dict[int, Words]:
    params = parameters()
    keys = deal(params.scheme)
    return {j: coin_share(params, key, SET) for j, key in keys.items()}


def test_any_quorum_opens_the_same_coin() -> None:
    given = shares()
    params = parameters()
    coins = {
        open_coin(params, {j: words for j, words in given.items() if j != absent}).value
        for absent in range(6)
    }
    assert len(coins) == 1


def test_another_set_has_another_coin() -> None:
    params = parameters()
    keys = deal(params.scheme)
    other = {j: coin_share(params, key, bytes(32)) for j, key in keys.items()}
    given = shares()
    assert open_coin(params, other) != open_coin(params, given)


def test_one_wrong_share_beside_a_quorum_is_corrected_and_named() -> None:
    given = shares()
    params = parameters()
    right = open_coin(params, given)
    given[2] = given[2] + np.uint64(1)
    coin = open_coin(params, given)
    assert (coin.value, coin.liars) == (right.value, (2,))
    assert coin.sha256 == right.sha256 == hashlib.sha256(b"fedagg/coin/1\0" + coin.value).digest()


def test_a_wrong_share_within_the_quorum_opens_nothing() -> None:
    given = shares()
    given[2] = given[2] + np.uint64(1)
    del given[5]
    with pytest.raises(EvidenceInsufficientError):
        open_coin(parameters(), given)


def test_too_few_shares_open_nothing() -> None:
    given = shares()
    with pytest.raises(EvidenceInsufficientError, match="quorum=4"):
        open_coin(parameters(), {j: given[j] for j in (1, 2, 3)})


def test_correction_never_goes_below_the_quorum() -> None:
    # (3, 7): five shares correct one error, but four consistent ones are no quorum of five.
    params = parameters(threshold=3, holders=7)
    keys = deal(params.scheme)
    given = {j: coin_share(params, keys[j], SET) for j in range(1, 6)}
    open_coin(params, given)
    given[1] = given[1] + np.uint64(5)
    with pytest.raises(EvidenceInsufficientError, match="4 consistent"):
        open_coin(params, given)


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
