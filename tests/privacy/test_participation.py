import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.charge import Charge, Mechanism, Sampling
from privacy.errors import PrivacyError
from privacy.participation import charged_rounds, participation_counts

POISSON = Charge(noise_multiplier=0.5, sampling=Sampling.POISSON, sampling_probability=0.1)
FIXED = Charge(noise_multiplier=9.0, sampling=Sampling.FIXED_SIZE, population=9, cohort=3)
PLAIN = tuple(Charge(noise_multiplier=z) for z in (8.0, 2.0, 4.0))
BANDED = Charge(noise_multiplier=3.0, mechanism=Mechanism.BANDED, bands=4)


def test_rounds_with_sampling_all_count() -> None:
    counts = {POISSON: 7, FIXED: 3, PLAIN[0]: 5}
    assert participation_counts(counts, 0) == {POISSON: 7, FIXED: 3}


def test_without_a_cap_all_rounds_count() -> None:
    counts = {POISSON: 7, PLAIN[0]: 5, BANDED: 2}
    assert participation_counts(counts, None) == counts


def test_the_rounds_with_the_least_noise_count_first() -> None:
    counts = {PLAIN[0]: 5, PLAIN[1]: 2, BANDED: 1, PLAIN[2]: 3}
    assert participation_counts(counts, 4) == {PLAIN[1]: 2, BANDED: 1, PLAIN[2]: 1}
    assert participation_counts(counts, 1) == {PLAIN[1]: 1}


def test_rounds_that_did_not_happen_are_left_out() -> None:
    assert participation_counts({PLAIN[0]: 0, POISSON: 0}, 9) == {}


def cost(charges: list[Charge]) -> float:
    """What Gaussian releases cost together, whatever the delta: the sum of 1 / z^2."""
    return math.fsum(charge.noise_multiplier**-2 for charge in charges)


@given(
    st.fixed_dictionaries({charge: st.integers(0, 3) for charge in PLAIN}),
    st.integers(0, 6),
)
def test_no_device_with_fewer_participations_costs_more(
    rounds: dict[Charge, int], most: int
) -> None:
    happened = [charge for charge, count in rounds.items() for _ in range(count)]
    counted = participation_counts(rounds, most)
    worst = cost([charge for charge, count in counted.items() for _ in range(count)])
    taken = min(most, len(happened))
    costs = [cost(list(chosen)) for chosen in combinations(happened, taken)]
    assert worst == pytest.approx(max(costs), rel=1e-12)


@pytest.mark.parametrize(
    ("sampling", "cap", "expected"),
    [
        (Sampling.NONE, None, 100),
        (Sampling.NONE, 10, 10),
        (Sampling.NONE, 1000, 100),
        (Sampling.POISSON, 10, 100),
        (Sampling.FIXED_SIZE, None, 100),
    ],
)
def test_a_run_counts_its_rounds_or_the_cap(
    sampling: Sampling, cap: int | None, expected: int
) -> None:
    assert charged_rounds(sampling, 100, cap) == expected


def test_numbers_below_0_are_refused() -> None:
    with pytest.raises(PrivacyError, match="max_participations=-1 must be at least 0"):
        participation_counts({}, -1)
    with pytest.raises(PrivacyError, match="rounds=-2 must be at least 0"):
        participation_counts({POISSON: -2}, None)
    with pytest.raises(PrivacyError, match="num_rounds=-3 must be at least 0"):
        charged_rounds(Sampling.NONE, -3, None)
