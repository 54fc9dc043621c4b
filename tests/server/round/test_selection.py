"""Selection: caps that cannot be exceeded, fairness in the long run, and steady hints."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.round.selection import (
    Candidate,
    DeviceConditions,
    EligibilityCriteria,
    Ineligibility,
    PaceSteering,
    SelectionError,
    SelectionPolicy,
    ServerDeviceSelector,
    cohort_size,
    eligibility,
    retry_after_ms,
)
from tests.looped import looped

SELECTOR = ServerDeviceSelector()


def fresh(count: int) -> list[Candidate]:
    return [
        Candidate(device_id=f"d{i}", offer_lapses_at_ms=i, last_round=None, participations=0)
        for i in range(count)
    ]


def play(
    policy: SelectionPolicy, *, devices: int, rounds: int, seed: int, offering: float = 1.0
) -> list[set[str]]:
    """Run rounds with honest book-keeping; each device offers itself with some probability."""
    state = {c.device_id: c for c in fresh(devices)}
    weather = random.Random(seed)
    history = []
    for number in range(1, rounds + 1):
        offers = [c for c in state.values() if weather.random() < offering]
        cohort = SELECTOR.select(offers, policy=policy, round_number=number, seed=seed + number)
        for device in cohort:
            old = state[device]
            state[device] = replace(old, last_round=number, participations=old.participations + 1)
        history.append(set(cohort))
    return history


@looped(
    "goal, over, eligible, expected",
    [
        (10, 1.3, 1000, 13),
        (100, 1.1, 1000, 110),  # the float product is 110.00000000000001
        (3, 1.3, 1000, 4),
        (10, 1.0, 1000, 10),
        (10, 1.3, 7, 7),
        (10, 1.3, 0, 0),
    ],
)
def test_cohort_size_is_the_exact_ceiling_capped_by_the_eligible(
    goal: int, over: float, eligible: int, expected: int
) -> None:
    policy = SelectionPolicy(reporting_goal=goal, over_selection=over)
    assert cohort_size(policy, eligible) == expected


@given(
    count=st.integers(0, 40),
    goal=st.integers(1, 20),
    seed=st.integers(-(2**100), 2**100),
    shuffle=st.randoms(use_true_random=False),
)
def test_selection_does_not_depend_on_candidate_order(
    count: int, goal: int, seed: int, shuffle: random.Random
) -> None:
    policy = SelectionPolicy(reporting_goal=goal)
    candidates = fresh(count)
    first = SELECTOR.select(candidates, policy=policy, round_number=1, seed=seed)
    shuffle.shuffle(candidates)
    assert SELECTOR.select(candidates, policy=policy, round_number=1, seed=seed) == first
    assert len(set(first)) == len(first) == cohort_size(policy, count)


@given(
    policy=st.builds(
        SelectionPolicy,
        reporting_goal=st.integers(1, 10),
        max_participations=st.integers(1, 4),
        min_rounds_between=st.integers(0, 4),
        fairness=st.sampled_from([0.0, 1.0, 16.0]),
    ),
    devices=st.integers(1, 15),
    seed=st.integers(0, 2**63),
)
def test_no_device_exceeds_the_cap_or_comes_back_too_early(
    policy: SelectionPolicy, devices: int, seed: int
) -> None:
    history = play(policy, devices=devices, rounds=25, seed=seed, offering=0.8)

    counts = Counter(device for cohort in history for device in cohort)
    assert all(count <= (policy.max_participations or 0) for count in counts.values())
    # Any window of `min_rounds_between + 1` consecutive rounds sees a device at most once.
    for start in range(len(history)):
        window = history[start : start + policy.min_rounds_between + 1]
        assert sum(len(cohort) for cohort in window) == len(set().union(*window))


def test_a_device_already_selected_in_this_round_is_not_selected_again() -> None:
    again = Candidate(device_id="d", offer_lapses_at_ms=0, last_round=5, participations=1)
    policy = SelectionPolicy(reporting_goal=1)
    assert SELECTOR.select([again], policy=policy, round_number=5, seed=1) == ()
    assert SELECTOR.select([again], policy=policy, round_number=6, seed=1) == ("d",)


def jain(counts: list[int]) -> float:
    """Jain's fairness index: 1 when all are equal, 1/n when one has everything."""
    return sum(counts) ** 2 / (len(counts) * sum(c * c for c in counts))


def test_long_run_participation_is_even() -> None:
    def spread(fairness: float) -> tuple[float, int]:
        policy = SelectionPolicy(reporting_goal=10, over_selection=1.0, fairness=fairness)
        history = play(policy, devices=100, rounds=200, seed=11, offering=0.5)
        counts = Counter(device for cohort in history for device in cohort)
        per_device = [counts[f"d{i}"] for i in range(100)]
        return jain(per_device), min(per_device)

    # 2000 selections over 100 devices: binomial counts (mean 20, sd 4.2) have an index near
    # 1 / (1 + 4.2^2 / 20^2) = 0.957. Weights that grow with age must do clearly better.
    uniform_index, _ = spread(0.0)
    fair_index, fewest = spread(2.0)
    assert 0.93 < uniform_index < 0.975
    assert fair_index > 0.98
    assert fewest >= 12


def test_inclusion_probabilities_follow_the_weights() -> None:
    # Drawing one of two devices with weights 1 + 1 = 2 and 1 + 5 = 6: the older is drawn in 3/4.
    recent = Candidate(device_id="recent", offer_lapses_at_ms=0, last_round=9, participations=1)
    older = Candidate(device_id="older", offer_lapses_at_ms=0, last_round=5, participations=1)
    policy = SelectionPolicy(reporting_goal=1, over_selection=1.0)
    draws = 2000
    wins = sum(
        SELECTOR.select([recent, older], policy=policy, round_number=10, seed=seed) == ("older",)
        for seed in range(draws)
    )
    four_sigma = 4 * math.sqrt(0.75 * 0.25 / draws)
    assert abs(wins / draws - 0.75) < four_sigma


def test_a_device_that_never_took_part_weighs_most() -> None:
    policy = SelectionPolicy(reporting_goal=1, over_selection=1.0, fairness=16.0)
    newcomer = Candidate(device_id="new", offer_lapses_at_ms=0, last_round=None, participations=0)
    oldest = Candidate(device_id="old", offer_lapses_at_ms=0, last_round=9, participations=1)
    chosen = {
        SELECTOR.select([newcomer, oldest], policy=policy, round_number=10, seed=seed)
        for seed in range(100)
    }
    assert chosen == {("new",)}  # (11 + 1)^16 against 2^16


def test_seed_and_round_change_the_cohort() -> None:
    policy = SelectionPolicy(reporting_goal=20)
    cohorts = {
        SELECTOR.select(fresh(100), policy=policy, round_number=number, seed=seed)
        for number in (1, 2)
        for seed in (1, 2, -1)
    }
    assert len(cohorts) == 6


def test_bad_input_is_refused() -> None:
    policy = SelectionPolicy(reporting_goal=1)
    with pytest.raises(SelectionError, match="each device once"):
        SELECTOR.select([*fresh(2), *fresh(1)], policy=policy, round_number=1, seed=0)
    with pytest.raises(SelectionError, match="seed"):
        SELECTOR.select(fresh(1), policy=policy, round_number=1, seed=2**255)


@looped(
    "changes",
    [
        {"reporting_goal": 0},
        {"over_selection": 0.9},
        {"over_selection": math.nan},
        {"over_selection": 11.0},
        {"max_participations": 0},
        {"min_rounds_between": -1},
        {"fairness": -0.1},
        {"fairness": math.inf},
    ],
)
def test_a_policy_cannot_be_invalid(changes: dict[str, float]) -> None:
    with pytest.raises(SelectionError, match=next(iter(changes))):
        replace(SelectionPolicy(reporting_goal=1), **changes)  # type: ignore[arg-type]  # by field name


PHONE = DeviceConditions(
    battery_percent=50,
    charging=False,
    metered_network=True,
    idle=False,
    available_ram_mib=2048,
    app_version="1.9.3",
)


@looped(
    "conditions, criteria, expected",
    [
        ({}, {}, None),
        ({"battery_percent": 14}, {}, Ineligibility.BATTERY_LOW),
        ({"battery_percent": 15}, {}, None),
        ({"battery_percent": 3, "charging": True}, {}, None),
        ({"battery_percent": None}, {"require_charging": True}, None),
        ({}, {"require_charging": True}, Ineligibility.NOT_CHARGING),
        ({}, {"require_unmetered": True}, Ineligibility.METERED_NETWORK),
        ({}, {"require_idle": True}, Ineligibility.IN_USE),
        ({}, {"min_ram_mib": 2048}, None),
        ({}, {"min_ram_mib": 2049}, Ineligibility.LITTLE_RAM),
        ({}, {"min_app_version": "1.10"}, Ineligibility.OLD_APP),
        ({}, {"min_app_version": "1.9.3"}, None),
        ({"app_version": "1.9"}, {"min_app_version": "1.9.0"}, None),
        ({"app_version": "1.10"}, {"min_app_version": "1.9.3"}, None),
        ({"app_version": ""}, {"min_app_version": "0"}, Ineligibility.OLD_APP),
        ({"app_version": "1.9-beta"}, {"min_app_version": "1"}, Ineligibility.OLD_APP),
        ({"app_version": "9" * 5000}, {"min_app_version": "1"}, Ineligibility.OLD_APP),
        ({"app_version": ""}, {}, None),
    ],
)
def test_eligibility_names_the_failing_criterion(
    conditions: dict[str, object], criteria: dict[str, object], expected: Ineligibility | None
) -> None:
    state = replace(PHONE, **conditions)  # type: ignore[arg-type]  # parametrised by field name
    wanted = replace(EligibilityCriteria(), **criteria)  # type: ignore[arg-type]  # likewise
    assert eligibility(state, wanted) is expected


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=4),
    st.lists(st.integers(0, 30), min_size=1, max_size=4),
)
def test_versions_compare_number_by_number(actual: list[int], minimum: list[int]) -> None:
    def padded(numbers: list[int]) -> list[int]:
        return numbers + [0] * (4 - len(numbers))

    state = replace(PHONE, app_version=".".join(map(str, actual)))
    criteria = EligibilityCriteria(min_app_version=".".join(map(str, minimum)))
    assert (eligibility(state, criteria) is None) == (padded(actual) >= padded(minimum))


@pytest.mark.parametrize(
    "changes", [{"min_app_version": "one"}, {"min_battery_percent": 101}, {"min_ram_mib": -1}]
)
def test_criteria_cannot_be_invalid(changes: dict[str, object]) -> None:
    with pytest.raises(SelectionError, match=next(iter(changes))):
        replace(EligibilityCriteria(), **changes)  # type: ignore[arg-type]  # by field name


@given(
    earliest=st.integers(0, 10**8),
    waiting=st.integers(0, 10**7),
    longest=st.integers(1, 10**8),
    seed=st.integers(0, 2**63),
)
def test_hints_stay_within_bounds_and_repeat(
    earliest: int, waiting: int, longest: int, seed: int
) -> None:
    pace = PaceSteering(earliest_ms=earliest, num_waiting=waiting, max_retry_ms=longest)
    hint = retry_after_ms(pace, device_id="d", round_number=3, seed=seed)
    assert 1 <= hint <= longest
    assert hint == retry_after_ms(pace, device_id="d", round_number=3, seed=seed)
    if earliest + max(1_000, 2 * waiting) <= longest:
        assert hint > earliest


def test_hints_spread_the_devices_evenly() -> None:
    pace = PaceSteering(earliest_ms=10_000, num_waiting=5_000, max_check_ins_per_s=500.0)
    hints = [retry_after_ms(pace, device_id=f"d{i}", round_number=1, seed=7) for i in range(5_000)]
    per_second = Counter((hint - 10_001) // 1_000 for hint in hints)
    # Ten seconds of 500 each; a binomial count (sd 21) leaves +-5 sd with probability 6e-7.
    assert set(per_second) == set(range(10))
    assert all(abs(count - 500) < 5 * 21.3 for count in per_second.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"earliest_ms": -1},
        {"num_waiting": -1},
        {"max_check_ins_per_s": 0.0},
        {"min_spread_ms": 0},
        {"max_retry_ms": 0},
    ],
)
def test_pace_cannot_be_invalid(changes: dict[str, float]) -> None:
    with pytest.raises(SelectionError, match=next(iter(changes))):
        replace(PaceSteering(earliest_ms=0, num_waiting=0), **changes)  # type: ignore[arg-type]  # by field name
