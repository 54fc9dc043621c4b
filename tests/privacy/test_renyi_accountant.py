import math
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy import renyi_accountant
from privacy.budget import ACCOUNTANTS, MAX_RELEASES, Accountant
from privacy.charge import Charge, Mechanism, Sampling
from privacy.errors import PrivacyError
from privacy.renyi_accountant import (
    MAX_PLD_EPSILON,
    RenyiPrivacyAccountant,
    epsilon_of,
    max_releases,
    within,
)
from tests.looped import looped
from tests.privacy import library_events

DELTA = 1e-5


def poisson(z: float, q: float) -> Charge:
    return Charge(noise_multiplier=z, sampling=Sampling.POISSON, sampling_probability=q)


def fixed_size(z: float, population: int, cohort: int) -> Charge:
    return Charge(
        noise_multiplier=z, sampling=Sampling.FIXED_SIZE, population=population, cohort=cohort
    )


SPEC = poisson(1.417, 0.01)
CHARGES = (
    SPEC,
    poisson(0.8, 0.2),
    poisson(6.0, 0.05),
    poisson(2.0, 1.0),
    fixed_size(3.0, 1_000, 10),
    fixed_size(8.0, 100, 20),
    Charge(noise_multiplier=3.731),
    Charge(noise_multiplier=20.0),
    Charge(noise_multiplier=11.8, mechanism=Mechanism.BANDED, bands=100),
)
COUNTS = st.dictionaries(st.sampled_from(CHARGES), st.integers(0, 3_000), max_size=5)


def composed(counts: dict[Charge, int]) -> RenyiPrivacyAccountant:
    accountant = RenyiPrivacyAccountant()
    for charge, count in counts.items():
        accountant.compose(charge, count)
    return accountant


def gaussian_delta(z: float, epsilon: float) -> float:
    """Exact delta of the Gaussian mechanism: Balle and Wang (2018), Theorem 8."""

    def below(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    return below(0.5 / z - epsilon * z) - math.exp(epsilon) * below(-0.5 / z - epsilon * z)


@pytest.mark.slow
@given(
    st.dictionaries(st.sampled_from(CHARGES), st.sampled_from([1, 70, 3_000]), max_size=5),
    st.sampled_from([1e-10, 1e-5, 1e-2]),
)
def test_epsilon_is_the_one_of_the_library(counts: dict[Charge, int], delta: float) -> None:
    expected = library_events.rdp_epsilon(counts, delta)
    # Sums in another order: one rounding of a few 1e-16 for each kind of charge.
    assert composed(counts).epsilon(delta) == pytest.approx(expected, rel=1e-12, abs=1e-14)
    assert epsilon_of(counts, delta, "rdp") == pytest.approx(expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize(
    "counts",
    [
        {SPEC: 1000},
        {Charge(noise_multiplier=3.731): 1},
        {fixed_size(8.0, 1_000, 10): 300},
        {SPEC: 300, Charge(noise_multiplier=20.0): 5},
        {fixed_size(8.0, 1_000, 10): 30, SPEC: 100},
    ],
)
def test_pld_epsilon_is_the_one_of_the_library(counts: dict[Charge, int]) -> None:
    expected = library_events.pld_epsilon(counts, DELTA)
    # Composed in another order, the library's own Fourier transforms round otherwise.
    assert composed(counts).pld_epsilon(DELTA) == pytest.approx(expected, rel=1e-6)
    assert epsilon_of(counts, DELTA) == pytest.approx(expected, rel=1e-6)


def test_a_thousand_steps_one_by_one_are_a_thousand_at_once() -> None:
    accountant = RenyiPrivacyAccountant()
    for _ in range(1000):
        accountant.compose(SPEC)
    assert accountant.counts == {SPEC: 1000}
    assert accountant.epsilon(DELTA) == composed({SPEC: 1000}).epsilon(DELTA)
    assert accountant.epsilon(DELTA) == pytest.approx(1.1023, abs=5e-4)  # the specification's


def test_the_order_of_composing_makes_no_difference() -> None:
    found = set()
    for order in permutations(CHARGES[:4]):
        accountant = RenyiPrivacyAccountant()
        for charge in order:
            accountant.compose(charge, 7)
        found.add(accountant.epsilon(DELTA))
    assert len(found) == 1
    values = {epsilon_of(dict.fromkeys(o, 3), DELTA) for o in permutations(CHARGES[:3])}
    assert len(values) == 1


@given(COUNTS, st.sampled_from(CHARGES))
def test_composing_more_never_lowers_epsilon(counts: dict[Charge, int], more: Charge) -> None:
    accountant = composed(counts)
    before = accountant.epsilon(DELTA)
    accountant.compose(more)
    assert accountant.epsilon(DELTA) >= before


@given(COUNTS, st.sampled_from(CHARGES), st.floats(0.2, 50.0))
def test_fits_tells_whether_one_more_release_does(
    counts: dict[Charge, int], charge: Charge, epsilon: float
) -> None:
    accountant = composed(counts)
    told = [accountant.fits(charge, epsilon=epsilon, delta=DELTA) for _ in range(2)]
    assert accountant.counts == {charge: n for charge, n in counts.items() if n}
    accountant.compose(charge)
    after = accountant.epsilon(DELTA)
    if after != pytest.approx(epsilon, rel=1e-12):
        assert told == [after <= epsilon] * 2


def test_fits_allows_exactly_as_many_steps_as_the_bound() -> None:
    accountant, steps = RenyiPrivacyAccountant(), 0
    while accountant.fits(SPEC, epsilon=1.0, delta=DELTA):
        accountant.compose(SPEC)
        steps += 1
    assert steps == max_releases(SPEC, epsilon=1.0, delta=DELTA, accountant="rdp")


@pytest.mark.slow
def test_the_specifications_run_fits_1002_times() -> None:
    most = max_releases(SPEC, epsilon=1.0, delta=DELTA)
    assert most == 1002
    assert library_events.pld_epsilon({SPEC: most}, DELTA) <= 1.0
    assert library_events.pld_epsilon({SPEC: most + 1}, DELTA) > 1.0


@pytest.mark.slow
@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize(
    ("charge", "epsilon"),
    [(poisson(0.8, 0.2), 8.0), (Charge(noise_multiplier=3.731), 2.0), (fixed_size(6, 50, 5), 3.0)],
)
def test_max_releases_is_the_largest_count_that_fits(
    charge: Charge, epsilon: float, accountant: Accountant
) -> None:
    most = max_releases(charge, epsilon=epsilon, delta=DELTA, accountant=accountant)
    assert most > 0
    assert epsilon_of({charge: most}, DELTA, accountant) <= epsilon
    assert epsilon_of({charge: most + 1}, DELTA, accountant) > epsilon


def test_max_releases_may_be_none_or_all() -> None:
    assert max_releases(Charge(noise_multiplier=0.01), epsilon=1.0, delta=DELTA) == 0
    assert max_releases(Charge(noise_multiplier=1e6), epsilon=9.0, delta=DELTA) == MAX_RELEASES


@pytest.mark.slow
@looped("accountant", ["pld", "rdp"])
@looped("epsilon", [0.5, 1.05, 20.0, 200.0])
@looped(
    "counts",
    [
        {},
        {SPEC: 1000},
        {SPEC: 900, CHARGES[6]: 1},
        {CHARGES[6]: 1, CHARGES[8]: 3},
        {CHARGES[4]: 10},
    ],
)
def test_within_is_the_comparison(
    counts: dict[Charge, int], epsilon: float, accountant: Accountant
) -> None:
    told = within(counts, epsilon=epsilon, delta=DELTA, accountant=accountant)
    assert told == (epsilon_of(counts, DELTA, accountant) <= epsilon)


def test_one_charge_is_compared_by_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert within({SPEC: 1002}, epsilon=1.0, delta=DELTA)

    def unexpected(counts: dict[Charge, int], delta: float) -> float:
        message = f"no loss distribution is needed for {counts} at {delta}"
        raise AssertionError(message)

    monkeypatch.setattr(renyi_accountant, "pld_epsilon", unexpected)
    for count in range(825, 1002):
        assert within({SPEC: count}, epsilon=1.0, delta=DELTA)
    assert not within({SPEC: 1003}, epsilon=1.0, delta=DELTA)


@pytest.mark.parametrize("z", [0.5, 1.0, 3.731, 20.0])
def test_a_gaussians_bounds_enclose_the_exact_one(z: float) -> None:
    charge = Charge(noise_multiplier=z)
    by_loss, by_renyi = epsilon_of({charge: 1}, DELTA), epsilon_of({charge: 1}, DELTA, "rdp")
    assert by_loss <= by_renyi
    # Sound, and no looser than the grid of losses makes it.
    assert gaussian_delta(z, by_loss) <= DELTA
    assert gaussian_delta(z, by_loss - 2e-3) > DELTA


@pytest.mark.parametrize("count", [2, 5, 10, 1000])
def test_k_releases_are_one_with_less_noise(count: int) -> None:
    z = 3.731 * math.sqrt(count)
    for mechanism, bands in ((Mechanism.GAUSSIAN, 1), (Mechanism.BANDED, 9)):
        charge = Charge(noise_multiplier=z, mechanism=mechanism, bands=bands)
        for by in ACCOUNTANTS:
            expected = epsilon_of({Charge(noise_multiplier=3.731): 1}, DELTA, by)
            assert epsilon_of({charge: count}, DELTA, by) == pytest.approx(expected, rel=1e-9)


def test_nothing_costs_nothing() -> None:
    assert epsilon_of({}, DELTA) == epsilon_of({SPEC: 0}, DELTA) == 0.0
    assert RenyiPrivacyAccountant().epsilon(DELTA) == 0.0
    assert RenyiPrivacyAccountant().pld_epsilon(DELTA) == 0.0
    assert within({}, epsilon=0.1, delta=DELTA)


def test_beyond_what_distributions_can_hold_the_renyi_bound_stands() -> None:
    charge = Charge(noise_multiplier=0.05)
    by_renyi = epsilon_of({charge: 1}, DELTA, "rdp")
    assert by_renyi > MAX_PLD_EPSILON
    assert epsilon_of({charge: 1}, DELTA) == by_renyi
    assert composed({charge: 1}).pld_epsilon(DELTA) == math.inf
    assert epsilon_of({Charge(noise_multiplier=1e-9): 1}, DELTA) == math.inf


@looped(
    "call, message",
    [
        (lambda: epsilon_of({SPEC: 1}, 0.0), "delta=0.0 must be above 0 and below 1"),
        (lambda: epsilon_of({SPEC: 1}, 1.0), "delta=1.0 must be"),
        (lambda: epsilon_of({SPEC: -1}, DELTA), "count=-1 must be in 0..1000000"),
        (lambda: epsilon_of({SPEC: 10**7}, DELTA), "count=10000000 must be in"),
        (lambda: epsilon_of({SPEC: 1}, DELTA, "best"), "accountant='best' must be"),  # type: ignore[arg-type]  # the point
        (lambda: max_releases(SPEC, epsilon=0.0, delta=DELTA), "epsilon=0.0 must be"),
        (lambda: max_releases(SPEC, epsilon=math.nan, delta=DELTA), "epsilon=nan must be"),
        (lambda: within({SPEC: 1}, epsilon=math.inf, delta=DELTA), "epsilon=inf must be"),
        (lambda: composed({SPEC: MAX_RELEASES}).compose(SPEC), "count of one charge=1000001"),
        (lambda: composed({SPEC: -1}), "count=-1 must be"),
        (lambda: composed({SPEC: 1}).epsilon(2.0), "delta=2.0 must be"),
        (lambda: composed({}).fits(SPEC, epsilon=1.0, delta=-1.0), "delta=-1.0 must be"),
    ],
)
def test_what_makes_no_sense_is_refused(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(PrivacyError, match=message):
        call()
