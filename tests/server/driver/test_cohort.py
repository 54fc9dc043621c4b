"""Cohorts follow the charge that the round was opened with, whatever the settings say since."""

from dataclasses import replace
from pathlib import Path

import pytest

from privacy.charge import Charge, Mechanism, Sampling
from server.config import TaskConfig
from server.config.privacy_config import PrivacyConfig
from server.driver.cohort import draw_cohort, offers_needed
from server.round.round_privacy import RoundPrivacy
from server.round.selection import Candidate
from server.round.state import Phase, Round
from server.task.resolving import task_info
from server.task.task_info import TaskInfo

POISSON = Charge(noise_multiplier=1.0, sampling=Sampling.POISSON, sampling_probability=0.25)
FIXED = Charge(noise_multiplier=1.0, sampling=Sampling.FIXED_SIZE, population=8, cohort=4)
PLAIN = Charge(noise_multiplier=1.0)
BANDED = Charge(noise_multiplier=1.0, mechanism=Mechanism.BANDED, bands=4)
SELECTION_S = 60.0


def info(**changes: object) -> TaskInfo:
    config = TaskConfig(
        name="digits",
        initial_model=Path("unused"),
        reporting_goal=4,
        min_contributions=3,
        over_selection=1.5,
        selection_timeout_s=SELECTION_S,
        privacy=PrivacyConfig(population=20),
    )
    return task_info(config.model_copy(update=changes), dim=3)


def a_round(charge: Charge | None, *, number: int = 9, cap: int | None = None) -> Round:
    privacy = None
    if charge is not None:
        privacy = RoundPrivacy(
            charge=charge.to_text(),
            clipping_norm=1.0,
            sensitivity=1.0,
            expected_updates=4.0,
            max_participations=cap,
        )
    return Round(
        task="digits",
        number=number,
        version=1,
        phase=Phase.SELECTING,
        base_version=1,
        reporting_goal=4,
        min_contributions=1,
        collection_timeout_ms=1,
        opened_at_ms=0,
        phase_since_ms=0,
        seed=5,
        privacy=privacy,
    )


def fleet(size: int, **known: int | None) -> list[Candidate]:
    return [
        Candidate(
            device_id=f"d{number}",
            offer_lapses_at_ms=number,
            last_round=known.get("last_round"),
            participations=known.get("participations") or 0,
        )
        for number in range(size)
    ]


@pytest.mark.parametrize(
    ("charge", "at_once", "late"),
    [(None, 6, 3), (PLAIN, 6, 3), (POISSON, 20, 3), (FIXED, 8, 8)],
    ids=["not private", "not sampled", "poisson", "fixed size"],
)
def test_as_many_offers_are_needed_as_the_claim_wants(
    charge: Charge | None, at_once: int, late: int
) -> None:
    round_ = a_round(charge)
    assert offers_needed(round_, info(), waited_s=SELECTION_S - 0.1) == at_once
    assert offers_needed(round_, info(), waited_s=SELECTION_S) == late


def test_somebody_must_be_there_to_be_drawn() -> None:
    nobody = info(privacy=PrivacyConfig(population=0))
    assert offers_needed(a_round(POISSON), nobody, waited_s=0.0) == 1


def test_without_a_claim_the_cohort_is_over_selected() -> None:
    for charge in (None, PLAIN):
        cohort = draw_cohort(a_round(charge), info(), fleet(20), needed=3)
        assert cohort is not None
        assert len(cohort) == 6


def test_without_a_claim_too_few_that_may_take_part_are_not_enough() -> None:
    tired = fleet(20, last_round=1, participations=2)
    assert draw_cohort(a_round(PLAIN, cap=2), info(), tired, needed=3) is None


@pytest.mark.parametrize(("setting", "round_cap"), [(None, 3), (3, None), (5, 3), (3, 5)])
def test_the_stricter_cap_of_the_task_and_of_the_charge_holds(
    setting: int | None, round_cap: int | None
) -> None:
    task = info(max_participations=setting)
    round_ = a_round(PLAIN, cap=round_cap)
    allowed, spent = fleet(20, last_round=1, participations=2), fleet(20, participations=3)
    assert draw_cohort(round_, task, allowed, needed=3) is not None
    assert draw_cohort(round_, task, spent, needed=3) is None


def test_a_banded_charge_keeps_a_devices_rounds_apart_whatever_the_settings_say() -> None:
    task = info(min_rounds_between=0)
    for last, may in ((5, True), (6, False)):
        cohort = draw_cohort(a_round(BANDED), task, fleet(20, last_round=last), needed=3)
        assert (cohort is not None) == may
    strict = info(min_rounds_between=6)
    assert draw_cohort(a_round(BANDED), strict, fleet(20, last_round=3), needed=3) is None


def test_a_fixed_sample_is_not_drawn_from_fewer_than_the_population() -> None:
    assert draw_cohort(a_round(FIXED), info(), fleet(7), needed=8) is None
    cohort = draw_cohort(a_round(FIXED), info(), fleet(9), needed=8)
    assert cohort is not None
    assert len(cohort) == 4


def test_a_poisson_cohort_is_drawn_again_alike() -> None:
    """A device that came later may be in it; nobody's coin changes."""
    early = draw_cohort(a_round(POISSON), info(), fleet(40), needed=3)
    late = draw_cohort(a_round(POISSON), info(), fleet(60), needed=3)
    assert early is not None
    assert late is not None
    ids = {one.device_id for one in fleet(40)}
    assert set(early) == set(late) & ids
    assert 0 < len(early) < 40


def test_a_poisson_cohort_may_be_empty() -> None:
    shy = replace(POISSON, sampling_probability=1e-9)
    assert draw_cohort(a_round(shy), info(), fleet(40), needed=3) == ()
    assert draw_cohort(a_round(shy), info(), fleet(2), needed=3) is None


@pytest.mark.parametrize("charge", [POISSON, FIXED])
def test_a_sample_does_not_depend_on_what_devices_did_before(charge: Charge) -> None:
    fresh = draw_cohort(a_round(charge), info(), fleet(40), needed=8)
    tired = fleet(40, last_round=8, participations=99)
    task = info(max_participations=1, min_rounds_between=9, fairness=16.0)
    assert draw_cohort(a_round(charge), task, tired, needed=8) == fresh
