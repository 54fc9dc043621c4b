import math
from dataclasses import replace

import numpy as np
import pytest

from privacy.banded_noise import BandedNoise
from privacy.charge import Mechanism, Sampling
from privacy.errors import PrivacyError
from privacy.noise_plan import ASSUMPTIONS, PlanRequest, plan
from tests.looped import looped
from tests.privacy import library_events

BASE = PlanRequest(epsilon=1.0, delta=1e-5, population=10_000, cohort=100, rounds=1000)
PLAIN = replace(BASE, sampling=Sampling.NONE, max_participations=10)


@pytest.mark.slow
def test_the_specifications_run() -> None:
    found = plan(replace(BASE, clipping_norm=0.1, dim=400))
    z = found.charge.noise_multiplier
    assert z == pytest.approx(1.417, abs=2.1e-3)
    assert found.charge.sampling_probability == 0.01
    assert found.participations == 1000
    assert found.epsilon_pld <= 1.0 < found.epsilon_rdp < 1.12
    assert found.max_participations >= 1000
    assert found.error_per_coordinate == pytest.approx(z * 0.1 / 100, rel=1e-12)
    assert found.error_norm == pytest.approx(20 * z * 0.1 / 100, rel=1e-12)
    # Independent from round to round: after t rounds sqrt(t) times one, sqrt(500) on average.
    assert 100 * found.cumulative_error == pytest.approx(z * 0.1 * math.sqrt(500.5), rel=1e-12)
    assert found.assumption == ASSUMPTIONS[Sampling.POISSON]


@pytest.mark.parametrize(
    ("bands", "cap", "banded", "independent"),
    [(100, 10, 45.2, 263.9), (200, 5, 27.8, 186.6), (50, 20, 78.3, 373), (25, 40, 142, 528)],
)
def test_banded_noise_adds_up_to_the_known_error(
    bands: int, cap: int, banded: float, independent: float
) -> None:
    request = replace(PLAIN, max_participations=cap)
    found = plan(replace(request, bands=bands))
    assert found.charge.mechanism is Mechanism.BANDED
    assert found.charge.bands == bands
    assert 100 * found.cumulative_error == pytest.approx(banded, rel=3e-3)
    assert 100 * plan(request).cumulative_error == pytest.approx(independent, rel=2e-3)


def test_banded_errors_are_those_of_the_mechanism() -> None:
    bands, rounds = 4, 30
    found = plan(replace(PLAIN, bands=bands, rounds=rounds, max_participations=2))
    noise = BandedNoise(bands)
    matrix = np.zeros((rounds, rounds))
    for place, coefficient in enumerate(noise.coefficients):
        matrix += np.diag(np.full(rounds - place, coefficient / noise.column_norm), -place)
    inverse = np.linalg.inv(matrix)
    scale = found.charge.noise_multiplier / 100
    late = scale * np.linalg.norm(inverse[-1])
    # The mechanism's coefficients are whole: within 1/8192 of the ideal ones.
    assert found.error_per_coordinate == pytest.approx(late, rel=1e-3)
    summed = np.cumsum(inverse, axis=0)
    whole = scale * math.sqrt(float((summed**2).sum()) / rounds)
    assert found.cumulative_error == pytest.approx(whole, rel=1e-3)


def test_one_band_is_independent_noise() -> None:
    one, none = plan(replace(PLAIN, bands=1)), plan(PLAIN)
    assert one.cumulative_error == pytest.approx(none.cumulative_error, rel=1e-12)
    assert one.error_per_coordinate == pytest.approx(none.error_per_coordinate, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "participations"),
    [
        ({}, 10),
        ({"max_participations": None}, 1000),
        ({"max_participations": 5000}, 1000),
        ({"bands": 300}, 4),
        ({"bands": 2000}, 1),
        ({"max_participations": None, "bands": 100}, 10),
    ],
)
def test_a_device_without_sampling_pays_for_the_rounds_it_can_be_in(
    change: dict[str, int | None], participations: int
) -> None:
    found = plan(replace(PLAIN, **change))  # type: ignore[arg-type]  # any field
    assert found.participations == participations
    assert found.assumption.startswith("nothing")


@pytest.mark.slow
@pytest.mark.long
def test_fixed_size_cohorts_are_planned_by_their_own_bounds() -> None:
    request = PlanRequest(
        epsilon=1.0,
        delta=1e-5,
        population=500,
        cohort=20,
        rounds=3,
        sampling=Sampling.FIXED_SIZE,
    )
    found = plan(request)
    assert (found.charge.population, found.charge.cohort) == (500, 20)
    counts = {found.charge: 3}
    assert found.epsilon_pld <= 1.0
    assert found.epsilon_rdp == pytest.approx(library_events.rdp_epsilon(counts, 1e-5), rel=1e-12)
    assert "uniformly random" in found.assumption


def test_errors_grow_with_all_that_noise_grows_with() -> None:
    one = plan(PLAIN)
    more = plan(replace(PLAIN, sensitivity=3.0, clipping_norm=2.0, excess=1.5))
    assert more.charge == one.charge
    for name in ("error_per_coordinate", "error_norm", "cumulative_error"):
        assert getattr(more, name) == pytest.approx(9.0 * getattr(one, name), rel=1e-12)


def test_either_accountant_keeps_the_budget() -> None:
    by_renyi = plan(replace(PLAIN, accountant="rdp"))
    assert by_renyi.epsilon_pld < by_renyi.epsilon_rdp <= 1.0
    assert plan(PLAIN).epsilon_pld <= 1.0 < plan(PLAIN).epsilon_rdp


@looped(
    "change, message",
    [
        ({"cohort": 0}, "cohort=0 must be in 1..population=10000"),
        ({"cohort": 10_001}, "cohort=10001 must be in"),
        ({"rounds": 0}, "rounds=0 must be at least 1"),
        ({"max_participations": 0}, "max_participations=0 must be at least 1"),
        ({"bands": 0}, "bands=0 must be at least 1"),
        ({"sensitivity": 0.0}, "sensitivity=0.0 must be above 0"),
        ({"clipping_norm": math.nan}, "clipping_norm=nan must be above 0"),
        ({"dim": 0}, "dim=0 must be at least 1"),
        ({"excess": 0.5}, "excess=0.5 must be at least 1"),
        (
            {"sampling": Sampling.POISSON},
            "max_participations=10 and bands=None must not be given with sampling poisson",
        ),
        (
            {"sampling": Sampling.FIXED_SIZE, "max_participations": None, "bands": 2},
            "max_participations=None and bands=2 must not be given with sampling fixed-size",
        ),
    ],
)
def test_requests_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        replace(PLAIN, **change)  # type: ignore[arg-type]  # any field
