from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.errors import InconsistentSharesError, SharingError, TooFewSharesError
from security.secret_sharing import arithmetic
from security.secret_sharing.field import M31, M61, MersenneField, Words
from security.secret_sharing.reconstruction import open_each, reconstruct
from security.secret_sharing.threshold import Threshold
from tests.looped import looped
from tests.security.secret_sharing.sharings import SHARINGS, by_coefficients, from_seed, scale_of

M7 = MersenneField(7)
SCHEMES = [Threshold(t, n) for t, n in ((2, 2), (2, 3), (2, 5), (3, 5), (3, 7), (4, 7), (7, 7))]


def secret_of(field: MersenneField, length: int, seed: int = 0) -> Words:
    secret = np.random.default_rng(seed).integers(0, field.modulus, length, dtype=np.uint64)
    extremes = [0, field.modulus - 1, field.modulus // 2, field.modulus // 2 + 1]
    secret[: len(extremes)] = np.array(extremes, np.uint64)[:length]
    return secret


@looped("sharing", SHARINGS)
@pytest.mark.parametrize("field", [M7, M31, M61], ids=lambda field: f"{field.bits}")
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_every_subset_of_t_opens_the_same_words(
    sharing: str, field: MersenneField, scheme: Threshold
) -> None:
    secret = secret_of(field, 601)
    shares = SHARINGS[sharing](field, scheme, secret, from_seed(1))
    degree, scale = scheme.threshold - 1, scale_of(sharing, scheme)
    for subset in combinations(scheme.points, scheme.threshold):
        some = {holder: shares[holder] for holder in subset}
        opened = reconstruct(field, some, degree=degree, scale=scale)
        np.testing.assert_array_equal(opened.values, secret)
    opened = reconstruct(field, shares, degree=degree, scale=scale)
    np.testing.assert_array_equal(opened.values, secret)
    assert opened.liars == ()


@given(data=st.data())
def test_the_sum_of_shares_opens_to_the_sum_of_integers(data: st.DataObject) -> None:
    field = data.draw(st.sampled_from([M31, M61]))
    scheme = data.draw(st.sampled_from([Threshold(2, 3), Threshold(3, 5)]))
    sharing = data.draw(st.sampled_from(sorted(SHARINGS)))
    length = data.draw(st.integers(0, 12))
    bound = field.modulus // 2 // 4
    vectors = st.lists(st.integers(-bound, bound), min_size=length, max_size=length)
    updates = data.draw(st.lists(vectors, min_size=1, max_size=4))
    totals = {holder: np.zeros(length, np.uint64) for holder in scheme.points}
    for number, update in enumerate(updates):
        words = np.array([field.reduce(q) for q in update], dtype=np.uint64)
        for holder, share in SHARINGS[sharing](field, scheme, words, from_seed(number)).items():
            arithmetic.add_into(field, totals[holder], share)
    expected = [sum(column) for column in zip(*updates, strict=True)]
    for subset in combinations(scheme.points, scheme.threshold):
        opened = reconstruct(
            field,
            {holder: totals[holder] for holder in subset},
            degree=scheme.threshold - 1,
            scale=scale_of(sharing, scheme),
        )
        assert [int(word) for word in opened.values] == [field.reduce(q) for q in expected]


@pytest.mark.parametrize("field", [M7, M31, M61], ids=lambda field: f"{field.bits}")
def test_a_product_of_shares_opens_with_twice_the_degree(field: MersenneField) -> None:
    scheme = Threshold(3, 5)
    a, b = secret_of(field, 100, 1), secret_of(field, 100, 2)
    left = by_coefficients(field, scheme, a, from_seed(1))
    right = by_coefficients(field, scheme, b, from_seed(2))
    shares = {j: arithmetic.multiply(field, left[j], right[j]) for j in scheme.points}
    opened = reconstruct(field, shares, degree=4)
    np.testing.assert_array_equal(opened.values, arithmetic.multiply(field, a, b))


@pytest.mark.parametrize(("t", "n"), [(2, 5), (3, 5), (3, 7), (2, 7)])
def test_every_set_of_liars_within_the_redundancy_is_named_and_corrected(t: int, n: int) -> None:
    scheme = Threshold(t, n)
    secret = secret_of(M61, 40)
    shares = by_coefficients(M61, scheme, secret, from_seed(3))
    correctable = (n - t) // 2
    assert correctable >= 1
    for number in range(1, correctable + 1):
        for liars in combinations(scheme.points, number):
            told = {holder: words.copy() for holder, words in shares.items()}
            for position, liar in enumerate(liars):
                # Each lies elsewhere, and everybody somewhere together.
                told[liar][position] ^= np.uint64(1)
                told[liar][30:] = np.uint64(liar)
            opened = reconstruct(M61, told, degree=t - 1)
            np.testing.assert_array_equal(opened.values, secret)
            assert opened.liars == liars


def test_a_lie_that_cannot_be_corrected_is_refused_and_never_opened() -> None:
    scheme = Threshold(3, 5)
    shares = by_coefficients(M61, scheme, secret_of(M61, 10), from_seed(4))
    shares[2][3] ^= np.uint64(1)
    four = {holder: shares[holder] for holder in (1, 2, 3, 4)}
    with pytest.raises(InconsistentSharesError, match=r"holders \(1, 2, 3, 4\) lie on no poly"):
        reconstruct(M61, four, degree=2)
    shares[5][4] ^= np.uint64(1)
    with pytest.raises(InconsistentSharesError, match="who is wrong cannot be told"):
        reconstruct(M61, shares, degree=2)


def test_just_enough_shares_show_no_lie() -> None:
    shares = by_coefficients(M61, Threshold(3, 5), secret_of(M61, 10), from_seed(4))
    shares[2][3] ^= np.uint64(1)
    assert reconstruct(M61, {j: shares[j] for j in (1, 2, 3)}, degree=2).liars == ()


def test_too_few_or_unfit_shares_are_refused() -> None:
    words = np.zeros(3, np.uint64)
    with pytest.raises(TooFewSharesError, match="at least 3 for degree 2, got 2"):
        reconstruct(M61, {1: words, 2: words}, degree=2)
    with pytest.raises(TooFewSharesError, match="got 0"):
        open_each(M61, {}, degree=0)
    with pytest.raises(SharingError, match=r"one length, got \[3, 2\]"):
        reconstruct(M61, {1: words, 2: words[:2]}, degree=1)
    for holders in ((0, 1), (1, M7.modulus)):
        with pytest.raises(SharingError, match="holders"):
            reconstruct(M7, dict.fromkeys(holders, words), degree=1)


def test_values_are_opened_one_by_one_whoever_lies_where() -> None:
    scheme = Threshold(3, 7)
    secret = secret_of(M61, 60)
    shares = by_coefficients(M61, scheme, secret, from_seed(5))
    lies = {10: (1,), 11: (2, 7), 12: (3, 4), 13: (1, 2, 3)}
    for position, liars in lies.items():
        for liar in liars:
            shares[liar][position] = np.uint64((int(shares[liar][position]) + liar) % M61.modulus)
    opened = open_each(M61, shares, degree=2)
    assert np.flatnonzero(~opened.consistent).tolist() == [13]
    right = opened.consistent
    np.testing.assert_array_equal(opened.values[right], secret[right])
    for holder in scheme.points:
        expected = [at for at, liars in lies.items() if holder in liars and at != 13]
        assert np.flatnonzero(opened.wrong[holder]).tolist() == expected


def test_one_redundant_share_marks_what_it_cannot_correct() -> None:
    shares = by_coefficients(M31, Threshold(2, 3), secret_of(M31, 9), from_seed(6))
    shares[1][4] ^= np.uint64(1)
    opened = open_each(M31, shares, degree=1)
    assert np.flatnonzero(~opened.consistent).tolist() == [4]
    assert not any(wrong.any() for wrong in opened.wrong.values())


def test_without_redundancy_every_value_counts_as_consistent() -> None:
    secret = secret_of(M61, 9)
    shares = by_coefficients(M61, Threshold(3, 5), secret, from_seed(7))
    opened = open_each(M61, {j: shares[j] for j in (5, 2, 4)}, degree=2)
    assert opened.consistent.all()
    np.testing.assert_array_equal(opened.values, secret)


def test_an_empty_vector_opens() -> None:
    shares = {j: np.zeros(0, np.uint64) for j in (1, 2, 3)}
    assert len(reconstruct(M61, shares, degree=1).values) == 0
    assert len(open_each(M61, shares, degree=1).consistent) == 0
