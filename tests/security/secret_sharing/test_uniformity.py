"""What fewer than t holders see does not depend on the secret."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import pytest

from security.secret_sharing import cnf, seeded
from security.secret_sharing.expansion import expand_words
from security.secret_sharing.field import M61, MersenneField, Words
from security.secret_sharing.threshold import Threshold
from tests.looped import looped
from tests.security.secret_sharing import classic
from tests.security.secret_sharing.sharings import SHARINGS, from_seed

M7 = MersenneField(7)
SECRETS = (0, 101)
BINS = 256

Exhaustive = Callable[[Threshold, Words, Sequence[Words]], tuple[Words, ...]]


def every_randomness(count: int) -> tuple[Words, ...]:
    """Every value of `count` independent elements of the small field, together."""
    grid = np.meshgrid(*[np.arange(M7.modulus, dtype=np.uint64)] * count, indexing="ij")
    return tuple(axis.reshape(-1) for axis in grid)


def by_coefficients(scheme: Threshold, secret: Words, random: Sequence[Words]) -> tuple[Words, ...]:
    return classic.evaluate(M7, scheme, secret, random)


def by_seeds(scheme: Threshold, secret: Words, random: Sequence[Words]) -> tuple[Words, ...]:
    return (*random, *seeded.explicit_shares(M7, scheme, secret, random))


def without_randomness(
    scheme: Threshold, secret: Words, random: Sequence[Words]
) -> tuple[Words, ...]:
    """The control: the last coefficient is 0."""
    return classic.evaluate(M7, scheme, secret, [*random[:-1], np.zeros_like(secret)])


def distribution(
    sharing: Exhaustive, scheme: Threshold, secret: int, seen: Sequence[int]
) -> Counter[int]:
    random = every_randomness(scheme.threshold - 1)
    shares = sharing(scheme, np.full(len(random[0]), secret, np.uint64), random)
    view = np.zeros(len(random[0]), np.int64)
    for holder in seen:
        view = view * M7.modulus + shares[holder - 1].astype(np.int64)
    return Counter(view.tolist())


@looped("sharing", [by_coefficients, by_seeds])
@pytest.mark.parametrize("scheme", [Threshold(2, 3), Threshold(2, 5), Threshold(3, 5)], ids=str)
def test_any_fewer_than_t_shares_are_exactly_uniform_for_every_secret(
    sharing: Exhaustive, scheme: Threshold
) -> None:
    for seen in combinations(scheme.points, scheme.threshold - 1):
        one, other = (distribution(sharing, scheme, secret, seen) for secret in SECRETS)
        assert one == other
        assert len(one) == M7.modulus ** (scheme.threshold - 1)
        assert set(one.values()) == {1}


def test_t_shares_do_tell() -> None:
    seen = (1, 3, 5)
    one, other = (distribution(by_seeds, Threshold(3, 5), s, seen) for s in SECRETS)
    assert one.keys().isdisjoint(other.keys())


def test_a_sharing_with_too_little_randomness_is_noticed() -> None:
    one, other = (
        distribution(without_randomness, Threshold(3, 5), secret, (1, 2)) for secret in SECRETS
    )
    assert one != other


@pytest.mark.parametrize("scheme", [Threshold(2, 3)], ids=str)
def test_the_pieces_of_one_holder_are_exactly_uniform_for_every_secret(scheme: Threshold) -> None:
    # Three pieces: two random, the last explicit.
    for holder in scheme.points:
        seen = []
        for secret in SECRETS:
            random = every_randomness(2)
            words = np.full(len(random[0]), secret, np.uint64)
            pieces = [*random, cnf.explicit_piece(M7, words, random)]
            a, b = (pieces[i].astype(np.int64) for i in scheme.pieces_of(holder))
            seen.append(Counter((a * M7.modulus + b).tolist()))
        assert seen[0] == seen[1]
        assert set(seen[0].values()) == {1}


def deviation(words: Words) -> float:
    """Chi-square of the low byte against uniform, in its standard deviations."""
    counts = np.bincount((words & np.uint64(BINS - 1)).astype(np.int64), minlength=BINS)
    expected = len(words) / BINS
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return (statistic - (BINS - 1)) / float(np.sqrt(2 * (BINS - 1)))


@looped("sharing", SHARINGS)
@looped("secret", [0, M61.modulus - 1])
def test_each_share_of_the_large_field_looks_uniform(sharing: str, secret: int) -> None:
    words = np.full(50_000, secret, np.uint64)
    shares = SHARINGS[sharing](M61, Threshold(3, 5), words, from_seed(9))
    for share in shares.values():
        assert abs(deviation(share)) < 6


def test_a_biased_generator_does_not_look_uniform() -> None:
    # The control: every eighth word loses its lowest bit.
    words = expand_words(bytes(32), M61, 50_000)
    assert abs(deviation(words)) < 6
    words[::8] &= ~np.uint64(1)
    assert deviation(words) > 6


def test_a_sharing_that_forgets_a_coefficient_does_not_look_uniform() -> None:
    secret = np.zeros(50_000, np.uint64)
    narrow = expand_words(bytes(32), M61, 50_000) >> np.uint64(55)
    shares = classic.evaluate(M61, Threshold(3, 5), secret, [narrow, np.zeros_like(secret)])
    assert all(deviation(share) > 6 for share in shares)
