import math
import subprocess
import sys

import mpmath  # type: ignore[import-untyped]  # no types
import numpy as np
import pytest
from numpy.typing import NDArray

from privacy.charge import Charge, Mechanism, Sampling
from privacy.divergences import (
    LEAST_MULTIPLIER,
    ORDERS,
    pld_epsilon,
    rdp_event,
    rdp_vector,
)

Floats = NDArray[np.float64]

GRID: Floats = np.linspace(-40.0, 40.0, 80_001)
STEP = float(GRID[1] - GRID[0])


def poisson(z: float, q: float) -> Charge:
    return Charge(noise_multiplier=z, sampling=Sampling.POISSON, sampling_probability=q)


def fixed_size(z: float, population: int, cohort: int) -> Charge:
    return Charge(
        noise_multiplier=z, sampling=Sampling.FIXED_SIZE, population=population, cohort=cohort
    )


def log_mixture(q: float, center: float, z: float) -> Floats:
    """Log density of the noised sum that the device is in with probability q.

    Everybody else sends the same; `center` is how far the device's update is from another's.
    """

    def log_normal(mean: float) -> Floats:
        density: Floats = -0.5 * ((GRID - mean) / z) ** 2 - math.log(z * math.sqrt(2 * math.pi))
        return density

    mixed: Floats = np.logaddexp(math.log1p(-q) + log_normal(0.0), math.log(q) + log_normal(center))
    return mixed


def renyi(first: Floats, second: Floats, order: int) -> float:
    terms = order * first + (1 - order) * second
    top = float(terms.max())
    return (top + math.log(float(np.exp(terms - top).sum()) * STEP)) / (order - 1)


def hockey_stick(first: Floats, second: Floats, epsilon: float) -> float:
    return float(np.maximum(np.exp(first) - math.exp(epsilon) * np.exp(second), 0.0).sum()) * STEP


# With others at -C, the device at C is 2 C away from them, at 0, C away; at -C, nothing.
ZERO_OUT_CENTERS = [(2.0, 1.0), (1.0, 2.0), (1.0, 0.0), (0.0, 1.0)]
REPLACE_CENTERS = [(2.0, 0.0), (0.0, 2.0), (1.0, -1.0)]


@pytest.mark.parametrize("z", [0.7, 1.417, 5.0])
def test_without_sampling_it_is_the_closed_form_of_a_gaussian(z: float) -> None:
    expected = [order / (2 * z * z) for order in ORDERS]
    for charge in (
        Charge(noise_multiplier=z),
        Charge(noise_multiplier=z, mechanism=Mechanism.BANDED, bands=7),
        poisson(z, 1.0),
    ):
        np.testing.assert_allclose(rdp_vector(charge), expected, rtol=1e-14)


@pytest.mark.parametrize(("z", "q"), [(0.8, 0.1), (1.417, 0.01), (6.0, 0.05)])
def test_poisson_sampling_is_the_binomial_sum(z: float, q: float) -> None:
    # Mironov, Talwar and Zhang (2019), arXiv:1908.10530, section 3.3, whole orders.
    with mpmath.workdps(60):
        for place in (0, 1, 10, 40):
            order = ORDERS[place]
            total = mpmath.fsum(
                mpmath.binomial(order, k)
                * mpmath.mpf(1 - q) ** (order - k)
                * mpmath.mpf(q) ** k
                * mpmath.exp(mpmath.mpf(k * k - k) / (2 * mpmath.mpf(z) ** 2))
                for k in range(order + 1)
            )
            expected = float(mpmath.log(total) / (order - 1))
            # The library adds up logarithms: an absolute error of some 1e-13.
            assert rdp_vector(poisson(z, q))[place] == pytest.approx(expected, rel=1e-8, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("z", "population", "cohort"), [(1.0, 100, 1), (2.0, 10, 1), (1.0, 2, 1)])
def test_fixed_size_bounds_hold_where_everybody_else_pulls_the_other_way(
    z: float, population: int, cohort: int
) -> None:
    q = cohort / population
    bounds = rdp_vector(fixed_size(z, population, cohort))
    for one, other in ZERO_OUT_CENTERS:
        for place in (0, 1, 6, 14, 30):
            exact = renyi(log_mixture(q, one, z), log_mixture(q, other, z), ORDERS[place])
            assert exact <= bounds[place] * (1 + 1e-9)


def test_fixed_size_bounds_of_an_undoubled_sensitivity_would_not_hold() -> None:
    # The control: z fed to the library as if zeroing were replacing.
    believed = rdp_vector(fixed_size(2 * 1.0, 100, 1))
    exact = renyi(log_mixture(0.01, 2.0, 1.0), log_mixture(0.01, 1.0, 1.0), ORDERS[2])
    assert exact > 100 * believed[2]


@pytest.mark.slow
@pytest.mark.parametrize("q", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("delta", [1e-5, 1e-3])
def test_fixed_size_loss_distributions_hold_where_everybody_else_pulls_the_other_way(
    q: float, delta: float
) -> None:
    epsilon = pld_epsilon({fixed_size(1.5, 100, round(100 * q)): 1}, delta)
    for one, other in ZERO_OUT_CENTERS + REPLACE_CENTERS:
        first, second = log_mixture(q, one, 1.5), log_mixture(q, other, 1.5)
        assert hockey_stick(first, second, epsilon) <= delta * (1 + 1e-6)


def test_vectors_are_kept_and_cannot_be_changed() -> None:
    charge = poisson(1.25, 0.02)
    assert rdp_vector(charge) is rdp_vector(poisson(1.25, 0.02))
    with pytest.raises(ValueError, match="read-only"):
        rdp_vector(charge)[0] = 0.0


@pytest.mark.parametrize("z", [1e-300, 1e-9, LEAST_MULTIPLIER / 2])
def test_next_to_no_noise_is_scored_as_no_privacy(z: float) -> None:
    for charge in (Charge(noise_multiplier=z), poisson(z, 0.1), fixed_size(z, 10, 2)):
        assert np.isinf(rdp_vector(charge)).all()
        assert pld_epsilon({charge: 1}, 1e-5) == math.inf


def test_the_least_multiplier_still_has_a_bound() -> None:
    for charge in (
        Charge(noise_multiplier=LEAST_MULTIPLIER),
        poisson(LEAST_MULTIPLIER, 0.1),
        fixed_size(LEAST_MULTIPLIER, 10, 2),
    ):
        assert np.isfinite(rdp_vector(charge)).all()


@pytest.mark.parametrize("q", [1e-6, 0.01, 1.0])
def test_no_rounding_makes_a_divergence_negative(q: float) -> None:
    for z in (5e3, 5e4, 1e6):
        assert (rdp_vector(poisson(z, q)) >= 0.0).all()


def test_events_say_what_happened() -> None:
    assert str(rdp_event(poisson(1.5, 0.1))) == (
        "PoissonSampledDpEvent(sampling_probability=0.1,"
        " event=GaussianDpEvent(noise_multiplier=1.5))"
    )
    assert rdp_event(Charge(noise_multiplier=3.0)).noise_multiplier == 3.0


@pytest.mark.slow
def test_only_scoring_needs_the_library() -> None:
    # It takes seconds to import: devices and the store must not.
    modules = "budget, charge, clipping, participation, sensitivity"
    code = f"import sys; from privacy import {modules}; sys.exit('dp_accounting' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
