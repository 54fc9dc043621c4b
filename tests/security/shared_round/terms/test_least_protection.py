from dataclasses import replace

from security.shared_round.terms.least_protection import (
    LeastProtection,
    disagreement,
    opened_group_size,
    shortfall,
)
from security.shared_round.terms.parameter_facts import Checks, Degraded
from tests.looped import looped
from tests.security.shared_round.sealed_round import COMMITTEE, make_round

PARAMS = make_round(checks=Checks.NORM)
EXACT = LeastProtection(
    threshold=PARAMS.threshold,
    quorum=PARAMS.quorum,
    members=PARAMS.min_members,
    mask_scale=PARAMS.mask_scale,
    wrap_tests=PARAMS.wrap_tests,
    sketch_dim=PARAMS.sketch_dim,
    checks=frozenset({Checks.NORM}),
    degraded=frozenset({PARAMS.degraded}),
)


def test_a_round_exactly_as_strong_will_do() -> None:
    assert shortfall(PARAMS, EXACT) is None
    assert disagreement(PARAMS, COMMITTEE) is None


@looped("name", ["threshold", "quorum", "members", "mask_scale", "wrap_tests", "sketch_dim"])
def test_every_floor_is_a_floor(name: str) -> None:
    floor = getattr(EXACT, name) + 1
    told = shortfall(PARAMS, replace(EXACT, **{name: floor}))
    assert told is not None
    assert f"{name}={floor - 1} of the round must be at least {floor}" in told


def test_words_that_will_do_are_listed_in_their_order() -> None:
    weaker = replace(EXACT, checks=frozenset({Checks.DISTANCES, Checks.SUM}))
    assert shortfall(PARAMS, weaker) == "checks=norm of the round must be sum or distances"
    mode = replace(EXACT, degraded=frozenset(Degraded) - {PARAMS.degraded})
    assert str(shortfall(PARAMS, mode)).endswith("must be grouped or unchecked or abort")


def test_noise_is_counted_without_the_dealers_that_may_collude() -> None:
    told = shortfall(PARAMS, replace(EXACT, noise_multiplier=0.1))
    assert told is not None
    assert "must leave at least 0.1 norm bounds of noise" in told


def test_floors_of_checks_do_not_bind_rounds_without() -> None:
    unchecked = make_round(checks=Checks.SUM)
    least = replace(EXACT, checks=frozenset(Checks), wrap_tests=10**6)
    assert shortfall(unchecked, least) is None


def test_groups_count_where_some_may_be_opened() -> None:
    one_sum = replace(PARAMS, degraded=Degraded.WAIT)
    degraded = replace(PARAMS, degraded=Degraded.GROUPED)
    assert opened_group_size(one_sum) == 0
    assert opened_group_size(degraded) == 8
    least = replace(EXACT, checks=frozenset(Checks), degraded=frozenset(Degraded), group_size=9)
    assert shortfall(one_sum, replace(least, quorum=0, members=2)) is None
    told = shortfall(degraded, replace(least, quorum=0, members=2))
    assert told == "group_size=8 of the round must be at least 9"


def test_a_round_of_another_committee_is_told() -> None:
    stranger = replace(PARAMS, committee_sha256=bytes(32))
    for params, committee in ((stranger, COMMITTEE), (PARAMS, replace(COMMITTEE, threshold=2))):
        told = disagreement(params, committee)
        assert told is not None
        assert f"those of the configured committee, {committee.threshold} of 5" in told
