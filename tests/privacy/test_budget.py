"""The ledger's arithmetic: what counts for the busiest device, and what still fits the budget."""

import math
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import renyi_accountant
from privacy.budget import (
    Accountant,
    Budget,
    LedgerState,
    Scorer,
    allows,
    charged_counts,
    remaining_rounds,
    spent,
)
from privacy.charge import Charge, Sampling
from privacy.errors import PrivacyError
from tests.looped import looped

QUIET = Charge(noise_multiplier=4.0)
LOUD = Charge(noise_multiplier=1.0)
POISSON = Charge(noise_multiplier=2.0, sampling=Sampling.POISSON, sampling_probability=0.1)
FIXED = Charge(noise_multiplier=2.0, sampling=Sampling.FIXED_SIZE, population=100, cohort=10)
ALL = (QUIET, LOUD, POISSON, FIXED)
PRICES = {QUIET: 1.0, LOUD: 16.0, POISSON: 2.0, FIXED: 4.0}


class PriceList:
    """Epsilon is a sum of prices: easy to add up by other means."""

    def epsilon_of(
        self, counts: Mapping[Charge, int], delta: float, accountant: Accountant
    ) -> float:
        del delta, accountant
        return sum(PRICES[charge] * count for charge, count in counts.items())

    def within(
        self, counts: Mapping[Charge, int], *, epsilon: float, delta: float, accountant: Accountant
    ) -> bool:
        return self.epsilon_of(counts, delta, accountant) <= epsilon


PRICE_LIST: Scorer = PriceList()
REAL: Scorer = renyi_accountant


def ledger(**changes: object) -> LedgerState:
    return LedgerState(**changes)  # type: ignore[arg-type]  # tests name the fields


def budget(epsilon: float = 10.0, cap: int | None = None) -> Budget:
    return Budget(epsilon=epsilon, delta=1e-5, max_participations=cap)


charges = st.sampled_from(ALL)
ledgers = st.builds(
    LedgerState,
    committed=st.dictionaries(charges.map(Charge.to_text), st.integers(0, 20)),
    reserved=st.dictionaries(st.integers(1, 9), charges.map(Charge.to_text), max_size=3),
    max_participations=st.integers(0, 30),
)
caps = st.none() | st.integers(1, 30)


@looped(
    "field, value",
    [
        ("epsilon", 0.0),
        ("epsilon", math.inf),
        ("delta", 0.0),
        ("delta", 1.0),
        ("accountant", "guess"),
        ("max_participations", 0),
    ],
)
def test_a_budget_that_bounds_nothing_is_refused(field: str, value: object) -> None:
    arguments = {"epsilon": 1.0, "delta": 1e-5, field: value}
    with pytest.raises(PrivacyError, match=f"^{field}="):
        Budget(**arguments)  # type: ignore[arg-type]  # the point of the test


@pytest.mark.parametrize(
    "changes",
    [
        {"committed": {QUIET.to_text(): -1}},
        {"max_participations": -1},
        {"uncharged": -1},
        {"committed": {"free": 1}},
        {"reserved": {1: "free"}},
    ],
)
def test_a_ledger_holds_charges_and_counts_only(changes: dict[str, object]) -> None:
    with pytest.raises(PrivacyError):
        ledger(**changes)


def test_a_round_is_reserved_and_settled_once() -> None:
    state = LedgerState().reserve(3, QUIET)
    assert state.reserved == {3: QUIET.to_text()}
    with pytest.raises(PrivacyError, match="round_number=3"):
        state.reserve(3, LOUD)
    charged, released = state.settle(3, charged=True), state.settle(3, charged=False)
    assert (charged.committed, charged.reserved) == ({QUIET.to_text(): 1}, {})
    assert released == LedgerState()
    for settled in (charged, released):
        with pytest.raises(PrivacyError, match="round_number=3"):
            settled.settle(3, charged=True)


def test_sampled_rounds_count_for_every_device() -> None:
    state = ledger(
        committed={POISSON.to_text(): 5, FIXED.to_text(): 2}, reserved={8: POISSON.to_text()}
    )
    assert charged_counts(state, max_participations=1) == {POISSON: 6, FIXED: 2}


def test_other_rounds_count_as_often_as_the_busiest_device_was_selected() -> None:
    state = ledger(committed={QUIET.to_text(): 9}, max_participations=3)
    assert charged_counts(state) == {QUIET: 3}


def test_the_most_expensive_rounds_count() -> None:
    state = ledger(
        committed={QUIET.to_text(): 9, LOUD.to_text(): 2, POISSON.to_text(): 1},
        max_participations=5,
    )
    assert charged_counts(state) == {LOUD: 2, QUIET: 3, POISSON: 1}


def test_an_open_round_may_be_one_more_for_the_busiest_device() -> None:
    state = ledger(
        committed={QUIET.to_text(): 9}, reserved={1: QUIET.to_text()}, max_participations=3
    )
    assert charged_counts(state) == {QUIET: 4}
    assert charged_counts(state, max_participations=3) == {QUIET: 3}


def test_a_cap_below_what_has_happened_undoes_nothing() -> None:
    state = ledger(committed={QUIET.to_text(): 9}, max_participations=3)
    assert charged_counts(state, max_participations=1) == {QUIET: 3}


@given(state=ledgers, cap=caps, selected=st.lists(st.booleans(), max_size=60))
def test_nothing_counts_less_than_it_cost_any_device(
    state: LedgerState, cap: int | None, selected: list[bool]
) -> None:
    """Follow one device through all rounds: what it took part in is within what is counted."""
    limit = max(state.max_participations, cap) if cap else state.max_participations
    limit = min(limit, state.max_participations + len(state.reserved))
    cost, taken, choices = 0.0, 0, iter(selected)
    rounds = [text for text, count in state.committed.items() for _ in range(count)]
    for text in (*rounds, *state.reserved.values()):
        charge = Charge.from_text(text)
        if charge.sampling is not Sampling.NONE:
            cost += PRICES[charge]
        elif taken < limit and next(choices, True):
            cost, taken = cost + PRICES[charge], taken + 1
    counts = charged_counts(state, max_participations=cap)
    assert PRICE_LIST.epsilon_of(counts, 1e-5, "pld") >= cost


@given(state=ledgers, cap=caps, charge=charges)
def test_a_round_more_never_counts_less(
    state: LedgerState, cap: int | None, charge: Charge
) -> None:
    more = state.reserve(99, charge)
    before = spent(state, budget(cap=cap), PRICE_LIST)
    assert before <= spent(more, budget(cap=cap), PRICE_LIST)
    # Charging it counts no more than reserving did, releasing it nothing at all.
    assert spent(more.settle(99, charged=True), budget(cap=cap), PRICE_LIST) <= spent(
        more, budget(cap=cap), PRICE_LIST
    )
    assert spent(more.settle(99, charged=False), budget(cap=cap), PRICE_LIST) == before


@given(
    state=ledgers, cap=caps, charge=charges, epsilon=st.floats(0.5, 200.0, allow_subnormal=False)
)
def test_what_is_allowed_is_within_the_budget_once_reserved(
    state: LedgerState, cap: int | None, charge: Charge, epsilon: float
) -> None:
    limit = budget(epsilon, cap)
    after = spent(state.reserve(99, charge), limit, PRICE_LIST)
    assert allows(state, charge, limit, PRICE_LIST) == (after <= epsilon)


@given(
    state=ledgers,
    cap=caps,
    charge=charges,
    epsilon=st.floats(0.5, 200.0, allow_subnormal=False),
    limit=st.integers(0, 40),
)
def test_the_remaining_rounds_are_those_that_can_be_opened_one_after_another(
    state: LedgerState, cap: int | None, charge: Charge, epsilon: float, limit: int
) -> None:
    terms = budget(epsilon, cap)
    told = remaining_rounds(state, charge, terms, PRICE_LIST, limit=limit)
    number = 100
    while number - 100 < limit and allows(state, charge, terms, PRICE_LIST):
        state, number = state.reserve(number, charge), number + 1
    assert told == number - 100


def test_a_version_without_a_charge_leaves_no_bound() -> None:
    state = ledger(uncharged=1)
    assert spent(state, budget(), PRICE_LIST) == math.inf
    assert not allows(state, QUIET, budget(1e9), PRICE_LIST)
    assert remaining_rounds(state, QUIET, budget(1e9), PRICE_LIST, limit=5) == 0


def test_nothing_is_spent_at_first() -> None:
    assert spent(LedgerState(), budget(), REAL) == 0.0


@settings(max_examples=20)
@given(rounds=st.integers(1, 1100))
def test_the_real_accountant_allows_as_many_rounds_as_it_says(rounds: int) -> None:
    charge = Charge(noise_multiplier=1.417, sampling=Sampling.POISSON, sampling_probability=0.01)
    terms = Budget(epsilon=1.0, delta=1e-5)
    most = renyi_accountant.max_releases(charge, epsilon=1.0, delta=1e-5, accountant="pld")
    state = ledger(committed={charge.to_text(): rounds})
    assert allows(state, charge, terms, REAL) == (rounds < most)
    assert remaining_rounds(state, charge, terms, REAL, limit=10**4) == max(0, most - rounds)


@pytest.mark.parametrize("cap", [1, 4])
def test_a_cap_bounds_the_spending_of_any_number_of_rounds(cap: int) -> None:
    terms = Budget(epsilon=3.0, delta=1e-5, max_participations=cap)
    state = ledger(committed={QUIET.to_text(): 10**5}, max_participations=cap)
    assert spent(state, terms, REAL) == renyi_accountant.epsilon_of({QUIET: cap}, 1e-5)
    assert allows(state, QUIET, terms, REAL)
