from dataclasses import replace

import pytest

from privacy.amplification import (
    Closing,
    NoiseSource,
    SamplingFacts,
    Selection,
    amplification_refusals,
)
from privacy.charge import Sampling

GOOD = SamplingFacts(
    noise=NoiseSource.CENTRAL,
    coordinator_sees_updates=True,
    selection=Selection.OWN_COINS,
    closing=Closing.DEADLINE,
    seed_is_secret=True,
    has_participation_limits=False,
    counts_late_updates=False,
    is_whole_population=True,
    rule_ignores_zeros=True,
)
GOOD_OF = {
    Sampling.POISSON: GOOD,
    Sampling.FIXED_SIZE: replace(GOOD, selection=Selection.UNIFORM),
}
WORST = SamplingFacts(
    noise=NoiseSource.DEVICE,
    coordinator_sees_updates=False,
    selection=Selection.WEIGHTED,
    closing=Closing.COUNT,
    seed_is_secret=False,
    has_participation_limits=True,
    counts_late_updates=True,
    is_whole_population=False,
    rule_ignores_zeros=False,
)
BOTH = tuple(sorted(GOOD_OF, key=lambda sampling: sampling.value))


def test_no_sampling_may_always_be_claimed() -> None:
    assert amplification_refusals(Sampling.NONE, WORST) == ()


@pytest.mark.parametrize("sampling", BOTH)
def test_sampling_as_the_accountant_believes_it_may_be_claimed(sampling: Sampling) -> None:
    assert amplification_refusals(sampling, GOOD_OF[sampling]) == ()


@pytest.mark.parametrize("sampling", BOTH)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"noise": NoiseSource.DEVICE}, "devices add the noise"),
        ({"coordinator_sees_updates": False}, "the coordinator, from whom updates are hidden"),
        ({"seed_is_secret": False}, "knows the seed"),
        ({"has_participation_limits": True}, "limits on participation"),
        ({"counts_late_updates": True}, "late updates"),
        ({"selection": Selection.WEIGHTED}, "must be"),
    ],
)
def test_each_fact_that_breaks_the_claim_is_a_reason_of_its_own(
    sampling: Sampling, change: dict[str, object], reason: str
) -> None:
    (only,) = amplification_refusals(sampling, replace(GOOD_OF[sampling], **change))  # type: ignore[arg-type]  # any field
    assert only.startswith(f"sampling {sampling.value} must not be claimed: ")
    assert reason in only


def test_what_one_kind_of_sampling_needs_the_other_may_not() -> None:
    presence = replace(GOOD, rule_ignores_zeros=False)
    (reason,) = amplification_refusals(Sampling.POISSON, presence)
    assert "an update of zeros from none" in reason
    uniform = replace(presence, selection=Selection.UNIFORM)
    assert amplification_refusals(Sampling.FIXED_SIZE, uniform) == ()
    part = replace(GOOD, is_whole_population=False)
    assert amplification_refusals(Sampling.POISSON, part) == ()
    (reason,) = amplification_refusals(
        Sampling.FIXED_SIZE, replace(part, selection=Selection.UNIFORM)
    )
    assert "all of the population" in reason


def test_coins_are_not_a_fixed_size_nor_the_other_way_round() -> None:
    (reason,) = amplification_refusals(Sampling.FIXED_SIZE, GOOD)
    assert "every subset of the size" in reason
    (reason,) = amplification_refusals(Sampling.POISSON, GOOD_OF[Sampling.FIXED_SIZE])
    assert "a coin of its own" in reason


def test_displacing_others_breaks_coins_but_not_a_fixed_size() -> None:
    (reason,) = amplification_refusals(Sampling.POISSON, replace(GOOD, closing=Closing.COUNT))
    assert "displace another: close by the deadline" in reason
    first = replace(GOOD, selection=Selection.UNIFORM, closing=Closing.COUNT)
    assert amplification_refusals(Sampling.FIXED_SIZE, first) == ()


@pytest.mark.parametrize(("sampling", "count"), [(Sampling.POISSON, 8), (Sampling.FIXED_SIZE, 7)])
def test_all_reasons_are_given_at_once(sampling: Sampling, count: int) -> None:
    assert len(amplification_refusals(sampling, WORST)) == count
