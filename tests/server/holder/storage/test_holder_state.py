"""The table of a holder's round: every walk stays on it, and promises are kept for ever."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from server.holder.storage.holder_state import (
    ALLOWED,
    MAX_SKIP,
    MAX_VOTES,
    CoinShown,
    CommitmentsShown,
    Event,
    FreezeProposed,
    GroupsFailed,
    HolderEventRefused,
    HolderPhase,
    HolderRound,
    LocksShown,
    PurgeAsked,
    Refusal,
    SelectionDerived,
    ShareOffered,
    VotesShown,
    step,
)
from tests.looped import looped

DIGESTS = st.sampled_from([bytes([number]) * 32 for number in range(3)])
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.just(ShareOffered()),
    st.builds(FreezeProposed, attempt=st.integers(1, 4), set_sha256=DIGESTS),
    st.builds(VotesShown, set_sha256=DIGESTS, box_sha256=DIGESTS),
    st.builds(LocksShown, set_sha256=DIGESTS, box_sha256=DIGESTS),
    st.builds(CoinShown, set_sha256=DIGESTS, coin_sha256=DIGESTS),
    st.builds(GroupsFailed, set_sha256=DIGESTS, coin_sha256=DIGESTS),
    st.builds(SelectionDerived, set_sha256=DIGESTS, coin_sha256=DIGESTS, selection_sha256=DIGESTS),
    st.builds(CommitmentsShown, set_sha256=DIGESTS, selection_sha256=DIGESTS),
    st.just(PurgeAsked()),
)
A, B, C = (bytes([number]) * 32 for number in range(3))


def walk(*events: Event) -> HolderRound:
    round_ = HolderRound()
    for event in events:
        round_ = step(round_, event)
    return round_


def refusal_of(round_: HolderRound, event: Event) -> Refusal:
    with pytest.raises(HolderEventRefused) as refused:
        step(round_, event)
    return refused.value.refusal


@given(st.lists(EVENTS, max_size=30))
def test_no_walk_breaks_a_promise(events: list[Event]) -> None:
    round_ = HolderRound()
    selections, opened, boxes = set(), set(), set()
    for event in events:
        try:
            after = step(round_, event)
        except HolderEventRefused:
            continue
        assert after.phase is ALLOWED[round_.phase][type(event)]
        assert after.ballots[: len(round_.ballots)] == round_.ballots
        if isinstance(event, CoinShown | GroupsFailed):
            opened.add((event.set_sha256, event.coin_sha256))
        if isinstance(event, VotesShown | LocksShown):
            boxes.add((event.set_sha256, event.box_sha256))
        if after.is_committed:
            selections.add((after.committed_set, after.selection_sha256))
        if isinstance(event, CommitmentsShown):
            assert (event.set_sha256, event.selection_sha256) in selections
        round_ = after
    attempts = [ballot.attempt for ballot in round_.ballots]
    assert len(set(attempts)) == len(attempts)
    assert len(selections) <= 1
    assert len(opened) <= 1
    assert len(boxes) <= 1


@looped("phase", HolderPhase)
def test_a_purge_is_always_allowed_and_final(phase: HolderPhase) -> None:
    assert ALLOWED[phase][PurgeAsked] is HolderPhase.PURGED
    assert set(ALLOWED[HolderPhase.PURGED]) == {PurgeAsked}


def test_a_later_attempt_replaces_an_earlier_one_until_the_holder_is_locked() -> None:
    first = FreezeProposed(attempt=1, set_sha256=A)
    second = FreezeProposed(attempt=2, set_sha256=B)
    round_ = walk(first, second)
    assert (round_.phase, round_.set_sha256) == (HolderPhase.FROZEN, B)
    assert refusal_of(round_, VotesShown(set_sha256=A, box_sha256=C)) is Refusal.SET_CONFLICT
    for event in (VotesShown(set_sha256=A, box_sha256=C), CoinShown(set_sha256=A, coin_sha256=C)):
        assert refusal_of(walk(first, event), second) is Refusal.SET_CONFLICT


def test_an_attempt_takes_one_vote() -> None:
    round_ = walk(FreezeProposed(attempt=2, set_sha256=A))
    for attempt in (1, 2):
        event = FreezeProposed(attempt=attempt, set_sha256=B)
        assert refusal_of(round_, event) is Refusal.SET_CONFLICT


def test_votes_are_bounded() -> None:
    every = [FreezeProposed(attempt=n + 1, set_sha256=A) for n in range(MAX_VOTES)]
    one_more = FreezeProposed(attempt=MAX_VOTES + 1, set_sha256=A)
    assert refusal_of(walk(*every), one_more) is Refusal.SET_CONFLICT


@pytest.mark.parametrize("before", [(), (3,), (3, 3 + MAX_SKIP)])
def test_attempts_are_not_skipped_at_will(before: tuple[int, ...]) -> None:
    round_ = walk(*(FreezeProposed(attempt=number, set_sha256=A) for number in before))
    last = before[-1] if before else 0
    beyond = FreezeProposed(attempt=last + MAX_SKIP + 1, set_sha256=B)
    assert refusal_of(round_, beyond) is Refusal.SET_CONFLICT
    assert step(round_, FreezeProposed(attempt=last + MAX_SKIP, set_sha256=B)).set_sha256 == B


def test_a_set_has_one_coin() -> None:
    round_ = walk(FreezeProposed(attempt=1, set_sha256=A), CoinShown(set_sha256=A, coin_sha256=B))
    for event in (
        GroupsFailed(set_sha256=A, coin_sha256=C),
        SelectionDerived(set_sha256=A, coin_sha256=C, selection_sha256=B),
    ):
        assert refusal_of(round_, event) is Refusal.SET_CONFLICT


def test_a_round_has_one_box() -> None:
    box = {"set_sha256": A, "box_sha256": B}
    frozen = FreezeProposed(attempt=1, set_sha256=A)
    for event in (VotesShown(**box), LocksShown(**box)):
        locked = walk(frozen, event)
        assert locked.box_sha256 == B
        other = LocksShown(set_sha256=A, box_sha256=C)
        assert refusal_of(locked, other) is Refusal.SET_CONFLICT
        again = FreezeProposed(attempt=2, set_sha256=C)
        assert refusal_of(locked, again) is Refusal.SET_CONFLICT
    assert walk(frozen, VotesShown(**box), LocksShown(**box)).phase is HolderPhase.COIN


def test_a_holder_that_was_away_takes_on_the_commitment_of_a_set_it_voted_for_before() -> None:
    round_ = walk(
        FreezeProposed(attempt=1, set_sha256=A),
        FreezeProposed(attempt=2, set_sha256=B),
        CommitmentsShown(set_sha256=A, selection_sha256=C),
    )
    assert (round_.phase, round_.committed_set) == (HolderPhase.RELEASED, A)
    other = CommitmentsShown(set_sha256=B, selection_sha256=C)
    assert refusal_of(round_, other) is Refusal.SUM_CONFLICT


@looped(
    "events, event, refusal",
    [
        ([], VotesShown(set_sha256=A, box_sha256=C), Refusal.NOT_FROZEN),
        (
            [FreezeProposed(attempt=1, set_sha256=A)],
            VotesShown(set_sha256=B, box_sha256=C),
            Refusal.NOT_FROZEN,
        ),
        (
            [FreezeProposed(attempt=1, set_sha256=A)],
            CommitmentsShown(set_sha256=B, selection_sha256=A),
            Refusal.NOT_FROZEN,
        ),
        ([PurgeAsked()], ShareOffered(), Refusal.ROUND_PURGED),
        (
            [
                FreezeProposed(attempt=1, set_sha256=A),
                SelectionDerived(set_sha256=A, coin_sha256=B, selection_sha256=C),
            ],
            ShareOffered(),
            Refusal.ROUND_CLOSED,
        ),
        (
            [
                FreezeProposed(attempt=1, set_sha256=A),
                SelectionDerived(set_sha256=A, coin_sha256=B, selection_sha256=C),
            ],
            SelectionDerived(set_sha256=A, coin_sha256=B, selection_sha256=A),
            Refusal.SUM_CONFLICT,
        ),
    ],
)
def test_what_the_table_does_not_name_is_refused(
    events: list[Event], event: Event, refusal: Refusal
) -> None:
    assert refusal_of(walk(*events), event) is refusal
