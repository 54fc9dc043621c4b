"""The round's state machine: on the table, deny by default, every walk ends terminal or waiting."""

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.charge import Charge, Sampling
from server.round.round_privacy import RoundPrivacy
from server.round.shared_round import SharedRound
from server.round.state import (
    ALLOWED,
    COMPUTING,
    AbandonReason,
    AggregationFailed,
    BaseVersionChanged,
    CandidateFailed,
    CandidateModel,
    CandidatePassed,
    CandidateReady,
    ChecksDone,
    CohortSelected,
    DeadlineReached,
    Event,
    FreezeRetried,
    GoalReached,
    Phase,
    Round,
    RoundEventRejected,
    SetFrozen,
    SharedRoundFailed,
    step,
)
from tests.looped import looped

EVENT_TYPES = get_args(Event)
CANDIDATE = CandidateModel(sha256="ab" * 32, size_bytes=10, excluded=0)


def new_round(**changes: object) -> Round:
    round_ = Round(
        task="keyboard",
        number=3,
        version=1,
        phase=Phase.SELECTING,
        base_version=7,
        reporting_goal=4,
        min_contributions=2,
        collection_timeout_ms=1_000,
        opened_at_ms=50,
        phase_since_ms=50,
        seed=0,
    )
    return replace(round_, **changes)  # type: ignore[arg-type]  # tests name the fields


def collecting() -> Round:
    return step(new_round(), CohortSelected(at_ms=100, cohort_size=6))


def aggregating() -> Round:
    return step(collecting(), GoalReached(at_ms=200, accepted=4))


def validating() -> Round:
    return step(aggregating(), CandidateReady(at_ms=300, candidate=CANDIDATE))


SHARED = SharedRound(parameters="00", min_members=2)
MEMBERS = (("d1", "a1"), ("d2", "a2"), ("d3", "a3"))
DEALERS = (("noise:1", "b1"), ("noise:2", "b2"))
FROZEN = SetFrozen(
    at_ms=300,
    members=MEMBERS,
    set_sha256="5e",
    excluded=(("d4", "SEAL_BROKEN"),),
    dealers=DEALERS,
)
CHECKED = ChecksDone(
    at_ms=400,
    mode="checked",
    sums=((0, 2),),
    selection_sha256="5f",
    excluded=(("d2", "norm"),),
    holders=(1, 2, 3),
    liars=(3,),
)


def shared_collecting() -> Round:
    return step(new_round(), CohortSelected(at_ms=100, cohort_size=6, shared=SHARED))


def freezing() -> Round:
    return step(shared_collecting(), GoalReached(at_ms=200, accepted=4))


def checking() -> Round:
    return step(freezing(), FROZEN)


times = st.integers(0, 5_000)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(
        CohortSelected,
        at_ms=times,
        cohort_size=st.integers(0, 9),
        shared=st.sampled_from([None, SHARED]),
    ),
    st.builds(FreezeRetried, at_ms=times, attempt=st.integers(0, 3)),
    st.builds(
        SetFrozen,
        at_ms=times,
        members=st.sampled_from([MEMBERS, MEMBERS[:1]]),
        set_sha256=st.just("5e"),
    ),
    st.builds(
        ChecksDone,
        at_ms=times,
        mode=st.sampled_from(["checked", "degraded_grouped"]),
        sums=st.sampled_from([((0, 2),), ((0,),)]),
        selection_sha256=st.just("5f"),
    ),
    st.builds(SharedRoundFailed, at_ms=times, detail=st.just("x")),
    st.builds(GoalReached, at_ms=times, accepted=st.integers(0, 9)),
    st.builds(DeadlineReached, at_ms=times, accepted=st.integers(0, 9)),
    st.builds(CandidateReady, at_ms=times, candidate=st.just(CANDIDATE)),
    st.builds(AggregationFailed, at_ms=times, detail=st.just("x")),
    st.builds(CandidatePassed, at_ms=times),
    st.builds(CandidateFailed, at_ms=times, detail=st.just("x")),
    st.builds(BaseVersionChanged, at_ms=times, current_version=st.integers(6, 8)),
)


WAITING = [
    new_round(),
    collecting(),
    shared_collecting(),
    freezing(),
    checking(),
    aggregating(),
    validating(),
]


def test_a_round_that_goes_well_is_published() -> None:
    published = step(validating(), CandidatePassed(at_ms=400))
    assert published.phase is Phase.PUBLISHED
    assert published.candidate == CANDIDATE
    assert published.version == 5
    assert published.phase_since_ms == 400


def test_a_shared_round_is_frozen_and_checked_before_it_is_aggregated() -> None:
    assert freezing().phase is Phase.FREEZING
    assert checking().phase is Phase.CHECKING
    after = step(checking(), CHECKED)
    assert after.phase is Phase.AGGREGATING
    assert after.shared == replace(
        SHARED,
        members=MEMBERS,
        dealers=DEALERS,
        set_sha256="5e",
        mode="checked",
        sums=((0, 2),),
        selection_sha256="5f",
        excluded=(("d4", "SEAL_BROKEN"), ("d2", "norm")),
        holders=(1, 2, 3),
        liars=(3,),
    )


def test_dealers_are_kept_in_order() -> None:
    with pytest.raises(ValueError, match="dealers must ascend"):
        replace(SHARED, dealers=DEALERS[::-1])


def test_another_attempt_keeps_the_phase_and_its_clock() -> None:
    retried = step(freezing(), FreezeRetried(at_ms=900, attempt=2))
    assert (retried.phase, retried.phase_since_ms) == (Phase.FREEZING, 200)
    assert retried.shared == replace(SHARED, attempt=2)
    assert retried.version == freezing().version + 1


def test_attempts_only_rise() -> None:
    with pytest.raises(RoundEventRejected, match="attempt=1 must be above 1"):
        step(freezing(), FreezeRetried(at_ms=900, attempt=1))


def test_too_few_members_are_neither_frozen_nor_opened() -> None:
    with pytest.raises(RoundEventRejected, match="members=1 < min_members=2"):
        step(freezing(), replace(FROZEN, members=MEMBERS[:1]))
    with pytest.raises(RoundEventRejected, match="members=1 < min_members=2"):
        step(checking(), replace(CHECKED, sums=((0,),)))


def test_a_plain_round_has_no_use_for_the_events_of_a_shared_one() -> None:
    with pytest.raises(RoundEventRejected, match="the round is not shared"):
        step(collecting(), SharedRoundFailed(at_ms=150, detail="x"))


@pytest.mark.parametrize(
    ("round_", "reason"),
    [
        (shared_collecting(), AbandonReason.REFUSED_BY_HOLDERS),
        (freezing(), AbandonReason.FREEZE_FAILED),
        (checking(), AbandonReason.CHECKS_FAILED),
    ],
)
def test_a_shared_round_that_fails_says_in_which_phase(
    round_: Round, reason: AbandonReason
) -> None:
    abandoned = step(round_, SharedRoundFailed(at_ms=500, detail="3 of 4 holders"))
    assert (abandoned.phase, abandoned.reason) == (Phase.ABANDONED, reason)
    assert abandoned.detail == "3 of 4 holders"


@pytest.mark.parametrize(("max_staleness", "oldest"), [(0, 7), (2, 5), (9, 1)])
def test_the_oldest_version_admitted_is_bounded_by_the_staleness(
    max_staleness: int, oldest: int
) -> None:
    assert new_round(max_staleness=max_staleness).oldest_version == oldest


def test_collecting_starts_with_a_deadline_on_the_stores_clock() -> None:
    assert collecting().deadline_ms == 1_100


def test_a_cohort_smaller_than_the_goal_lowers_the_goal() -> None:
    assert step(new_round(), CohortSelected(at_ms=0, cohort_size=3)).reporting_goal == 3


def test_a_cohort_below_the_minimum_is_rejected() -> None:
    with pytest.raises(RoundEventRejected, match="cohort_size=1 < min_contributions=2"):
        step(new_round(), CohortSelected(at_ms=0, cohort_size=1))


def test_the_goal_is_not_reached_before_it_is() -> None:
    with pytest.raises(RoundEventRejected, match="accepted=3 < reporting_goal=4"):
        step(collecting(), GoalReached(at_ms=200, accepted=3))


def test_the_deadline_is_not_reached_before_it_is() -> None:
    with pytest.raises(RoundEventRejected, match="before deadline_ms=1100"):
        step(collecting(), DeadlineReached(at_ms=1_099, accepted=3))


def test_at_the_deadline_the_minimum_is_enough() -> None:
    assert step(collecting(), DeadlineReached(at_ms=1_100, accepted=2)).phase is Phase.AGGREGATING


def test_at_the_deadline_fewer_than_the_minimum_abandon_the_round() -> None:
    abandoned = step(collecting(), DeadlineReached(at_ms=1_100, accepted=1))
    assert abandoned.phase is Phase.ABANDONED
    assert abandoned.reason is AbandonReason.TOO_FEW_CONTRIBUTIONS
    assert abandoned.detail == "1 of at least 2"


@pytest.mark.parametrize(
    ("round_", "event", "reason"),
    [
        (
            aggregating(),
            AggregationFailed(at_ms=300, detail="n too small"),
            AbandonReason.AGGREGATION_FAILED,
        ),
        (validating(), CandidateFailed(at_ms=400, detail="NaN"), AbandonReason.VALIDATION_FAILED),
        (
            collecting(),
            BaseVersionChanged(at_ms=150, current_version=5),
            AbandonReason.BASE_VERSION_CHANGED,
        ),
    ],
)
def test_a_round_that_fails_says_why(round_: Round, event: Event, reason: AbandonReason) -> None:
    abandoned = step(round_, event)
    assert abandoned.reason is reason
    assert abandoned.detail


def test_an_unchanged_base_version_is_no_reason_to_abandon() -> None:
    with pytest.raises(RoundEventRejected, match="still current"):
        step(collecting(), BaseVersionChanged(at_ms=150, current_version=7))


@given(st.lists(events, max_size=30))
def test_every_change_of_phase_is_in_the_table(walk: list[Event]) -> None:
    round_ = new_round()
    for event in walk:
        try:
            after = step(round_, event)
        except RoundEventRejected:
            continue
        assert after.phase in ALLOWED[round_.phase][type(event)]
        assert after.version == round_.version + 1
        round_ = after


@given(st.lists(events, max_size=30))
def test_every_walk_ends_terminal_or_waiting(walk: list[Event]) -> None:
    round_ = new_round()
    for event in walk:
        try:
            round_ = step(round_, event)
        except RoundEventRejected:
            continue
    assert round_.is_terminal == (round_.phase in {Phase.PUBLISHED, Phase.ABANDONED})
    # A phase that is not terminal waits for an event that can take it to the end.
    assert round_.is_terminal or _can_end(round_.phase)


@given(event=events)
def test_terminal_phases_accept_nothing(event: Event) -> None:
    for end in (
        step(validating(), CandidatePassed(at_ms=400)),
        step(validating(), CandidateFailed(at_ms=400, detail="x")),
    ):
        with pytest.raises(RoundEventRejected):
            step(end, event)


@given(st.sampled_from(WAITING), events)
def test_a_phase_denies_every_event_it_does_not_name(round_: Round, event: Event) -> None:
    if type(event) not in ALLOWED[round_.phase]:
        with pytest.raises(RoundEventRejected, match="not allowed in this phase"):
            step(round_, event)


@given(st.sampled_from(WAITING), events)
def test_the_same_round_and_event_give_the_same_result(round_: Round, event: Event) -> None:
    def attempt() -> Round | str:
        try:
            return step(round_, event)
        except RoundEventRejected as error:
            return str(error)

    assert attempt() == attempt()


def test_the_table_covers_every_phase_and_every_event() -> None:
    assert set(ALLOWED) == set(Phase)
    named = {event for events_ in ALLOWED.values() for event in events_}
    assert named == set(EVENT_TYPES)


def test_every_target_in_the_table_is_reachable() -> None:
    cases: list[tuple[Round, Event]] = [
        (new_round(), CohortSelected(at_ms=0, cohort_size=4)),
        (new_round(), BaseVersionChanged(at_ms=0, current_version=1)),
        (collecting(), GoalReached(at_ms=0, accepted=4)),
        (collecting(), DeadlineReached(at_ms=1_100, accepted=4)),
        (collecting(), DeadlineReached(at_ms=1_100, accepted=0)),
        (collecting(), BaseVersionChanged(at_ms=0, current_version=1)),
        (shared_collecting(), GoalReached(at_ms=0, accepted=4)),
        (shared_collecting(), DeadlineReached(at_ms=1_100, accepted=4)),
        (shared_collecting(), SharedRoundFailed(at_ms=0, detail="x")),
        (freezing(), FreezeRetried(at_ms=0, attempt=2)),
        (freezing(), FROZEN),
        (freezing(), SharedRoundFailed(at_ms=0, detail="x")),
        (freezing(), BaseVersionChanged(at_ms=0, current_version=1)),
        (checking(), CHECKED),
        (checking(), SharedRoundFailed(at_ms=0, detail="x")),
        (checking(), BaseVersionChanged(at_ms=0, current_version=1)),
        (aggregating(), CandidateReady(at_ms=0, candidate=CANDIDATE)),
        (aggregating(), AggregationFailed(at_ms=0, detail="x")),
        (aggregating(), BaseVersionChanged(at_ms=0, current_version=1)),
        (validating(), CandidatePassed(at_ms=0)),
        (validating(), CandidateFailed(at_ms=0, detail="x")),
        (validating(), BaseVersionChanged(at_ms=0, current_version=1)),
    ]
    reached = {(round_.phase, type(event), step(round_, event).phase) for round_, event in cases}
    table = {
        (phase, event, target)
        for phase, events_ in ALLOWED.items()
        for event, targets in events_.items()
        for target in targets
    }
    assert reached == table


@looped(
    "changes, message",
    [
        ({"number": 0}, "number=0"),
        ({"base_version": 0}, "base_version=0"),
        ({"min_contributions": 5}, "min_contributions=5 must satisfy"),
        ({"min_contributions": 0}, "min_contributions=0 must satisfy"),
        ({"collection_timeout_ms": 0}, "collection_timeout_ms=0 must be >= 1"),
        ({"max_staleness": -1}, "max_staleness=-1 must be >= 0"),
    ],
)
def test_an_impossible_round_cannot_exist(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        new_round(**changes)


def _can_end(phase: Phase, seen: frozenset[Phase] = frozenset()) -> bool:
    if not ALLOWED[phase]:
        return True
    targets = {target for group in ALLOWED[phase].values() for target in group} - seen
    return any(_can_end(target, seen | {phase}) for target in targets)


POISSON = Charge(noise_multiplier=1.0, sampling=Sampling.POISSON, sampling_probability=0.5)


def privacy_of(charge: Charge) -> RoundPrivacy:
    return RoundPrivacy(
        charge=charge.to_text(), clipping_norm=1.0, sensitivity=1.0, expected_updates=4.0
    )


def sampled() -> Round:
    return new_round(privacy=privacy_of(POISSON), min_contributions=0)


@pytest.mark.parametrize("cohort_size", [0, 1, 40])
def test_the_goal_of_a_sampled_round_is_its_whole_cohort(cohort_size: int) -> None:
    after = step(sampled(), CohortSelected(at_ms=100, cohort_size=cohort_size))
    assert (after.phase, after.reporting_goal) == (Phase.COLLECTING, cohort_size)
    done = step(after, GoalReached(at_ms=200, accepted=cohort_size))
    assert done.phase is Phase.AGGREGATING


@pytest.mark.parametrize("accepted", [0, 1])
def test_a_sampled_round_is_not_abandoned_for_its_count(accepted: int) -> None:
    round_ = step(sampled(), CohortSelected(at_ms=100, cohort_size=3))
    after = step(round_, DeadlineReached(at_ms=1_100, accepted=accepted))
    assert after.phase is Phase.AGGREGATING


def test_only_sampled_rounds_need_no_contribution() -> None:
    with pytest.raises(ValueError, match="1 <= min_contributions"):
        new_round(min_contributions=0)
    with pytest.raises(ValueError, match="1 <= min_contributions"):
        new_round(min_contributions=0, privacy=privacy_of(Charge(noise_multiplier=1.0)))


def test_a_private_round_without_sampling_ends_as_any_other() -> None:
    round_ = new_round(privacy=privacy_of(Charge(noise_multiplier=1.0)))
    assert not round_.is_sampled
    after = step(round_, CohortSelected(at_ms=100, cohort_size=6))
    assert after.reporting_goal == 4
    late = step(after, DeadlineReached(at_ms=1_100, accepted=1))
    assert late.reason is AbandonReason.TOO_FEW_CONTRIBUTIONS


@looped("noise", ["central", "device", "holders"])
@looped("phase", [phase for phase in Phase if ALLOWED[phase]])
def test_what_may_have_been_released_is_spent(phase: Phase, noise: str) -> None:
    privacy = replace(privacy_of(Charge(noise_multiplier=1.0)), noise=noise)
    is_sent = noise == "device" and phase is not Phase.SELECTING
    assert new_round(privacy=privacy, phase=phase).is_spent is (is_sent or phase in COMPUTING)
    assert not new_round(phase=phase).is_spent


def test_noise_is_added_by_somebody_known() -> None:
    with pytest.raises(ValueError, match="noise='gateway' must be one of central, device, holders"):
        replace(privacy_of(POISSON), noise="gateway")


def test_noise_is_drawn_in_no_phase_before_aggregating() -> None:
    """What ends a round in these phases is charged; the phases before lead to none of them back."""
    assert {Phase.AGGREGATING, Phase.VALIDATING} == COMPUTING
    before = {Phase.SELECTING, Phase.COLLECTING, Phase.FREEZING, Phase.CHECKING}
    for phase in COMPUTING:
        for targets in ALLOWED[phase].values():
            assert not targets & before
    publishing = {
        phase for phase, on in ALLOWED.items() if Phase.PUBLISHED in set().union(*on.values())
    }
    assert publishing == {Phase.VALIDATING}
