import math

import pytest

from privacy.charge import Charge, Sampling
from privacy.errors import PrivacyError
from privacy.group_privacy import group_epsilon
from privacy.renyi_accountant import epsilon_of

DELTA = 1e-5


def poisson(z: float, q: float) -> Charge:
    return Charge(noise_multiplier=z, sampling=Sampling.POISSON, sampling_probability=q)


def fixed_size(z: float, population: int, cohort: int) -> Charge:
    return Charge(
        noise_multiplier=z, sampling=Sampling.FIXED_SIZE, population=population, cohort=cohort
    )


def gaussian_delta(z: float, epsilon: float) -> float:
    """Exact delta of the Gaussian mechanism: Balle and Wang (2018), Theorem 8."""

    def below(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    return below(0.5 / z - epsilon * z) - math.exp(epsilon) * below(-0.5 / z - epsilon * z)


@pytest.mark.slow
@pytest.mark.parametrize("charge", [Charge(noise_multiplier=9.0), poisson(4.0, 0.02)])
def test_larger_groups_lose_more(charge: Charge) -> None:
    epsilons = [group_epsilon({charge: 50}, group_size=size, delta=DELTA) for size in (1, 2, 3, 8)]
    assert epsilons == sorted(epsilons)
    assert epsilons[0] == pytest.approx(epsilon_of({charge: 50}, DELTA), abs=1e-3)


def test_a_group_without_sampling_is_one_device_with_less_noise() -> None:
    for charge in (Charge(noise_multiplier=12.0), fixed_size(12.0, 100, 100)):
        epsilon = group_epsilon({charge: 2}, group_size=4, delta=DELTA)
        assert gaussian_delta(12.0 / 4 / math.sqrt(2), epsilon) <= DELTA
        assert gaussian_delta(12.0 / 4 / math.sqrt(2), epsilon - 9e-3) > DELTA


@pytest.mark.slow
def test_a_group_under_poisson_sampling_is_between_one_device_and_no_sampling() -> None:
    counts, size = {poisson(3.0, 0.05): 20}, 4
    alone = epsilon_of({poisson(3.0 / size, 0.05): 20}, DELTA)
    together = group_epsilon(counts, group_size=size, delta=DELTA)
    # All of the group at once, as often as one device: less than what any one of them adds up to.
    assert together < epsilon_of({Charge(noise_multiplier=3.0 / size): 20}, DELTA)
    assert together > epsilon_of(counts, DELTA)
    assert together != pytest.approx(alone, rel=1e-3)


def test_nothing_costs_a_group_nothing() -> None:
    assert group_epsilon({poisson(1.0, 0.1): 0}, group_size=4, delta=DELTA) == 0.0


@pytest.mark.parametrize(
    ("count", "group_size", "delta", "message"),
    [
        (1, 0, DELTA, "group_size=0 must be at least 1"),
        (1, 101, DELTA, "group_size=101 must be at most 100 times the noise multiplier 1.0"),
        (-2, 1, DELTA, "count=-2 must be"),
        (1, 1, 0.0, "delta=0.0 must be"),
    ],
)
def test_what_makes_no_sense_is_refused(
    count: int, group_size: int, delta: float, message: str
) -> None:
    with pytest.raises(PrivacyError, match=message):
        group_epsilon({Charge(noise_multiplier=1.0): count}, group_size=group_size, delta=delta)
