import math

import pytest

from privacy.budget import Accountant
from privacy.calibration import noise_multiplier
from privacy.charge import Charge, Mechanism, Sampling
from privacy.errors import PrivacyError
from tests.privacy import library_events

DELTA = 1e-5
PLAIN = Charge(noise_multiplier=1.0)


def poisson(q: float, z: float = 1.0) -> Charge:
    return Charge(noise_multiplier=z, sampling=Sampling.POISSON, sampling_probability=q)


def least(shape: Charge, releases: int, accountant: Accountant = "pld") -> float:
    return noise_multiplier(
        shape, releases=releases, epsilon=1.0, delta=DELTA, accountant=accountant
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("q", "by_loss", "by_renyi"),
    [(0.005, 0.941, 1.090), (0.01, 1.417, 1.514), (0.02, 2.516, 2.715), (0.05, 6.0, 6.5)],
)
def test_poisson_runs_of_a_thousand_rounds_need_the_known_noise(
    q: float, by_loss: float, by_renyi: float
) -> None:
    # The table of the specification, which was rounded to three or four digits.
    assert least(poisson(q), 1000) == pytest.approx(by_loss, abs=2.1e-3)
    assert least(poisson(q), 1000, "rdp") == pytest.approx(by_renyi, abs=5.1e-3)


@pytest.mark.parametrize(
    ("participations", "expected"), [(1, 3.731), (2, 5.276), (5, 8.342), (10, 11.80)]
)
def test_participations_without_sampling_need_the_known_noise(
    participations: int, expected: float
) -> None:
    assert least(PLAIN, participations) == pytest.approx(expected, abs=2.1e-3)
    banded = Charge(noise_multiplier=1.0, mechanism=Mechanism.BANDED, bands=100)
    assert least(banded, participations) == least(PLAIN, participations)


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 3.0, 12.0])
def test_one_gaussian_needs_what_the_analytic_mechanism_does(epsilon: float) -> None:
    # Balle and Wang (2018), arXiv:1805.06530, Theorem 8, by bisection.
    def delta(z: float) -> float:
        def below(x: float) -> float:
            return 0.5 * math.erfc(-x / math.sqrt(2))

        return below(0.5 / z - epsilon * z) - math.exp(epsilon) * below(-0.5 / z - epsilon * z)

    low, high = 0.01, 100.0
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if delta(middle) > DELTA else (low, middle)
    found = noise_multiplier(PLAIN, releases=1, epsilon=epsilon, delta=DELTA)
    # Up to the next thousandth, and the grid of losses, 1e-3 of epsilon.
    assert high <= found <= high * (1 + 1e-3 / epsilon) + 1e-3


FIXED = Charge(noise_multiplier=1.0, sampling=Sampling.FIXED_SIZE, population=500, cohort=20)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "releases", "epsilon", "accountant"),
    [
        (poisson(0.01), 1000, 1.0, "pld"),
        (poisson(0.01), 1000, 1.0, "rdp"),
        (poisson(0.3), 50, 8.0, "pld"),
        (PLAIN, 3, 150.0, "pld"),
        (PLAIN, 3, 150.0, "rdp"),
        (FIXED, 3, 1.0, "pld"),
    ],
)
def test_the_budget_holds_and_a_thousandth_less_breaks_it(
    shape: Charge, releases: int, epsilon: float, accountant: Accountant
) -> None:
    score = library_events.pld_epsilon if accountant == "pld" else library_events.rdp_epsilon
    z = noise_multiplier(
        shape, releases=releases, epsilon=epsilon, delta=DELTA, accountant=accountant
    )
    assert z == pytest.approx(round(z, 3), abs=1e-12)

    def epsilon_at(z: float) -> float:
        charge = Charge(
            noise_multiplier=z,
            sampling=shape.sampling,
            sampling_probability=shape.sampling_probability,
            population=shape.population,
            cohort=shape.cohort,
        )
        return score({charge: releases}, DELTA)

    assert epsilon_at(z) <= epsilon
    # Of an epsilon in the hundreds no loss distribution is made: the Renyi bound decides there.
    if accountant == "rdp" or epsilon < 100:
        assert epsilon_at(z - 1e-3) > epsilon


def test_the_shapes_own_noise_makes_no_difference() -> None:
    assert least(Charge(noise_multiplier=77.0), 2) == least(PLAIN, 2)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(PrivacyError, match="releases=0 must be at least 1"):
        least(PLAIN, 0)
    with pytest.raises(PrivacyError, match=r"epsilon=0\.0 above 0"):
        noise_multiplier(PLAIN, releases=1, epsilon=0.0, delta=DELTA)
    with pytest.raises(PrivacyError, match=r"delta=1\.0 must be"):
        noise_multiplier(PLAIN, releases=1, epsilon=1.0, delta=1.0)
    with pytest.raises(
        PrivacyError,
        match="noise_multiplier above 1000000 would be needed for so little as epsilon=1e-06",
    ):
        noise_multiplier(PLAIN, releases=1_000_000, epsilon=1e-6, delta=1e-12, accountant="rdp")
