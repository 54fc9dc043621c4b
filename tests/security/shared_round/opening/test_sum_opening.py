"""Opening sums: exact, with liars named or at least noticed."""

from itertools import combinations

import numpy as np
import pytest

from security.errors import InconsistentSharesError, SharingError, TooFewSharesError
from security.secret_sharing.field import Words
from security.secret_sharing.fixed_point import centered
from security.shared_round.opening.sum_opening import open_sums
from security.shared_round.terms.parameter_facts import Checks, ShareFormat
from security.shared_round.terms.parameters import RoundParameters
from tests.security.shared_round.shared_vectors import (
    Committee,
    device_vector,
    integers,
    parameters,
    update,
)

SUMS = [(0, 2, 4), (1, 3)]


def summed(params: RoundParameters) -> tuple[dict[int, list[Words]], list[np.ndarray]]:
    rng = np.random.default_rng(2)
    updates = [update(params, rng) for _ in range(5)]
    group = Committee.of(
        params, [device_vector(params, words, i) for i, words in enumerate(updates)]
    )
    plain = [centered(words, params.field) for words in updates]
    return group.sums(SUMS), [np.sum([plain[i] for i in members], axis=0) for members in SUMS]


@pytest.mark.parametrize("checks", [Checks.SUM, Checks.NORM])
@pytest.mark.parametrize("format_", list(ShareFormat))
def test_any_t_holders_open_the_exact_integers(format_: ShareFormat, checks: Checks) -> None:
    params = parameters(format=format_, checks=checks)
    assert params.field_bits == (31 if checks is Checks.SUM else 61)
    shares, expected = summed(params)
    for count in (3, 4, 5):
        for holders in combinations(range(1, 6), count):
            opened = open_sums(params, {j: shares[j] for j in holders}, weights=[3, 2])
            assert all(map(np.array_equal, opened.sums, expected))
            assert opened.liars == ()


@pytest.mark.parametrize("scheme", [(2, 5), (3, 5), (3, 7)])
def test_a_lying_holder_is_named_and_changes_nothing(scheme: tuple[int, int]) -> None:
    params = parameters(threshold=scheme[0], holders=scheme[1])
    shares, expected = summed(params)
    shares[2][1] = shares[2][1] ^ np.uint64(1)
    opened = open_sums(params, shares, weights=[3, 2])
    assert opened.liars == (2,)
    assert all(map(np.array_equal, opened.sums, expected))


def test_with_one_share_to_spare_a_lie_is_noticed() -> None:
    params = parameters()
    shares, _ = summed(params)
    shares[2][0] = shares[2][0] ^ np.uint64(1)
    with pytest.raises(InconsistentSharesError):
        open_sums(params, {j: shares[j] for j in (1, 2, 3, 4)}, weights=[3, 2])


def test_with_t_shares_a_lie_shows_in_the_norm() -> None:
    params = parameters(format=ShareFormat.CNF_SEEDED)
    shares, _ = summed(params)
    shares[2][0] = shares[2][0] ^ np.uint64(1)
    with pytest.raises(InconsistentSharesError, match="sum 0 has norm"):
        open_sums(params, {j: shares[j] for j in (1, 2, 3)}, weights=[3, 2])


def test_fewer_than_t_holders_open_nothing() -> None:
    params = parameters()
    shares, _ = summed(params)
    with pytest.raises(TooFewSharesError, match="threshold=3"):
        open_sums(params, {j: shares[j] for j in (1, 2)}, weights=[3, 2])


def test_sums_of_another_number_or_length_are_refused() -> None:
    params = parameters()
    shares, _ = summed(params)
    with pytest.raises(SharingError, match="must be 1 of 300 words"):
        open_sums(params, shares, weights=[3])
    shares[1][0] = shares[1][0][:-1]
    with pytest.raises(SharingError, match="holder 1"):
        open_sums(params, shares, weights=[3, 2])


def test_a_sum_at_its_bound_is_plausible_and_above_it_is_not() -> None:
    params = parameters(checks=Checks.SUM)
    shares, _ = summed(params)
    with pytest.raises(InconsistentSharesError, match="more than its members"):
        open_sums(params, shares, weights=[1, 1])


def noised_shares(
    params: RoundParameters, noise: np.ndarray
) -> tuple[dict[int, list[Words]], np.ndarray]:
    """Shares of the sum of two updates and of that noise, and the sum without it."""
    rng = np.random.default_rng(8)
    updates = [update(params, rng) for _ in range(2)]
    dealt = np.concatenate((integers(params, noise), np.zeros(params.num_extras, np.uint64)))
    vectors = [device_vector(params, words, i) for i, words in enumerate(updates)]
    group = Committee.of(params, [*vectors, dealt])
    plain = np.sum([centered(words, params.field) for words in updates], axis=0)
    return group.sums([(0, 1, 2)]), plain


def test_honest_noise_is_plausible_and_stays_in_the_sum() -> None:
    params = parameters(noise_multiplier=5.0)
    scale = params.noise_stddev * np.sqrt(params.noise_dealers)
    noise = np.rint(np.random.default_rng(3).normal(scale=scale, size=params.dim)).astype(np.int64)
    shares, plain = noised_shares(params, noise)
    opened = open_sums(params, {j: shares[j] for j in (1, 2, 4)}, weights=[2])
    assert np.array_equal(opened.sums[0], plain + noise)


def test_noise_longer_than_honest_dealers_deal_is_refused() -> None:
    params = parameters(noise_multiplier=5.0)
    scale = params.noise_stddev * np.sqrt(params.noise_dealers)
    spread = np.full(params.dim, round(2 * scale), dtype=np.int64)
    single = np.zeros(params.dim, dtype=np.int64)
    single[0] = round(13 * scale)
    for noise, match in ((spread, "has norm"), (single, "holds")):
        shares, _ = noised_shares(params, noise)
        with pytest.raises(InconsistentSharesError, match=match):
            open_sums(params, shares, weights=[2])


def test_a_sum_without_noise_has_no_room_for_any() -> None:
    params = parameters()
    shares, _ = noised_shares(params, np.full(params.dim, params.norm_bound, dtype=np.int64))
    with pytest.raises(InconsistentSharesError, match="has norm"):
        open_sums(params, shares, weights=[2])
