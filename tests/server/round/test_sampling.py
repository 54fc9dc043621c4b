"""Cohorts that a privacy claim rests on: each device's coin is its own, each sample is uniform.

Counts are compared with what the claimed chance gives, in standard deviations; the same comparison
with a chance a little off must fail.
"""

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.round.selection import (
    Candidate,
    SelectionError,
    poisson_cohort,
    uniform_cohort,
)

SEED = 20240229
MAX_DEVIATION = 4.0  # standard deviations; the seeds are fixed


def candidate(number: int, **known: int) -> Candidate:
    return Candidate(
        device_id=f"d{number}",
        offer_lapses_at_ms=known.get("lapses", number),
        last_round=known.get("last_round"),
        participations=known.get("participations", 0),
    )


def fleet(size: int) -> list[Candidate]:
    return [candidate(number) for number in range(size)]


def deviation(hits: int, trials: int, probability: float) -> float:
    """How many standard deviations `hits` of so many coins are off."""
    spread = math.sqrt(trials * probability * (1 - probability))
    return abs(hits - trials * probability) / spread


candidates = st.lists(
    st.builds(
        candidate,
        st.integers(0, 10_000),
        lapses=st.integers(0, 9),
        last_round=st.integers(1, 9),
        participations=st.integers(0, 9),
    ),
    unique_by=lambda one: one.device_id,
    max_size=30,
)
seeds = st.integers(-(2**200), 2**200)


@pytest.mark.parametrize("probability", [0.01, 0.3])
def test_each_coin_falls_with_its_chance(probability: float) -> None:
    devices, rounds = 1000, 40
    hits = sum(
        len(poisson_cohort(fleet(devices), probability=probability, round_number=n, seed=SEED))
        for n in range(1, rounds + 1)
    )
    trials = devices * rounds
    assert deviation(hits, trials, probability) < MAX_DEVIATION
    assert deviation(hits, trials, 1.3 * probability) > MAX_DEVIATION


def test_coins_of_two_devices_and_of_two_rounds_are_independent() -> None:
    q, devices, rounds = 0.2, 60, 300
    cohorts = [
        set(poisson_cohort(fleet(devices), probability=q, round_number=n, seed=SEED))
        for n in range(1, rounds + 1)
    ]
    pairs = [(f"d{i}", f"d{i + 1}") for i in range(0, devices, 2)]
    both = sum(one in cohort and two in cohort for cohort in cohorts for one, two in pairs)
    assert deviation(both, len(pairs) * rounds, q * q) < MAX_DEVIATION
    again = sum(
        f"d{i}" in cohorts[n] and f"d{i}" in cohorts[n + 1]
        for n in range(0, rounds, 2)
        for i in range(devices)
    )
    assert deviation(again, devices * rounds // 2, q * q) < MAX_DEVIATION
    assert deviation(again, devices * rounds // 2, q) > MAX_DEVIATION


@given(offers=candidates, others=candidates, seed=seeds, number=st.integers(1, 10**6))
def test_a_coin_depends_on_nobody_else(
    offers: list[Candidate], others: list[Candidate], seed: int, number: int
) -> None:
    known = {one.device_id for one in offers}
    more = offers + [one for one in others if one.device_id not in known]
    alone = poisson_cohort(offers, probability=0.5, round_number=number, seed=seed)
    together = poisson_cohort(more, probability=0.5, round_number=number, seed=seed)
    assert alone == tuple(device for device in together if device in known)


@given(offers=candidates, seed=seeds, data=st.data())
def test_a_coin_does_not_depend_on_when_it_is_tossed(
    offers: list[Candidate], seed: int, data: st.DataObject
) -> None:
    bare = [
        Candidate(device_id=one.device_id, offer_lapses_at_ms=0, last_round=None, participations=0)
        for one in offers
    ]
    shuffled = data.draw(st.permutations(bare))
    assert poisson_cohort(offers, probability=0.4, round_number=5, seed=seed) == poisson_cohort(
        shuffled, probability=0.4, round_number=5, seed=seed
    )


@given(offers=candidates, seed=seeds, low=st.floats(0, 1), high=st.floats(0, 1))
def test_who_is_drawn_with_a_small_chance_is_drawn_with_a_greater_one(
    offers: list[Candidate], seed: int, low: float, high: float
) -> None:
    low, high = sorted((low, high))
    few = poisson_cohort(offers, probability=low, round_number=1, seed=seed)
    many = poisson_cohort(offers, probability=high, round_number=1, seed=seed)
    assert set(few) <= set(many)


def test_no_chance_draws_nobody_and_certainty_everybody() -> None:
    offers = fleet(50)
    assert poisson_cohort(offers, probability=0.0, round_number=1, seed=SEED) == ()
    everybody = poisson_cohort(offers, probability=1.0, round_number=1, seed=SEED)
    assert set(everybody) == {one.device_id for one in offers}


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_a_chance_that_is_none_is_refused(probability: float) -> None:
    with pytest.raises(SelectionError, match="probability="):
        poisson_cohort(fleet(2), probability=probability, round_number=1, seed=SEED)


def test_every_sample_of_a_size_is_equally_likely() -> None:
    """Chi-square over all 20 samples of 3 of 6 devices, 19 degrees of freedom."""
    rounds = 4000
    seen = dict.fromkeys(combinations([f"d{i}" for i in range(6)], 3), 0)
    for number in range(1, rounds + 1):
        seen[uniform_cohort(fleet(6), size=3, round_number=number, seed=SEED)] += 1  # type: ignore[index]  # three of them
    expected = rounds / len(seen)
    assert sum((count - expected) ** 2 / expected for count in seen.values()) < 43.8  # p = 0.001
    first = [count for sample, count in seen.items() if "d0" in sample]
    skewed = [*first, *(count * 0.8 for sample, count in seen.items() if "d0" not in sample)]
    assert sum((count - expected) ** 2 / expected for count in skewed) > 43.8


@given(offers=candidates, seed=seeds, data=st.data())
def test_a_sample_depends_on_the_set_of_ids_only(
    offers: list[Candidate], seed: int, data: st.DataObject
) -> None:
    if not offers:
        return
    size = data.draw(st.integers(1, len(offers)))
    bare = [
        Candidate(device_id=one.device_id, offer_lapses_at_ms=0, last_round=None, participations=0)
        for one in offers
    ]
    shuffled = data.draw(st.permutations(bare))
    cohort = uniform_cohort(offers, size=size, round_number=5, seed=seed)
    assert cohort == uniform_cohort(shuffled, size=size, round_number=5, seed=seed)
    assert len(set(cohort)) == size
    assert set(cohort) <= {one.device_id for one in offers}


@pytest.mark.parametrize("size", [0, 4])
def test_a_sample_that_cannot_be_drawn_is_refused(size: int) -> None:
    with pytest.raises(SelectionError, match=f"size={size}"):
        uniform_cohort(fleet(3), size=size, round_number=1, seed=SEED)


def test_a_device_that_offers_itself_twice_is_refused() -> None:
    twice = [candidate(1), candidate(1)]
    with pytest.raises(SelectionError, match="each device once"):
        poisson_cohort(twice, probability=0.5, round_number=1, seed=SEED)
    with pytest.raises(SelectionError, match="each device once"):
        uniform_cohort(twice, size=1, round_number=1, seed=SEED)
