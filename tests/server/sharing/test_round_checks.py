"""What a coordinator decides: modes by the number of openings, and who is left out why."""

from dataclasses import replace

import pytest

from security.shared_round.opening.verdicts import FailureReason, Verdict
from security.shared_round.terms.member_set import FrozenSet, Member, Selection, SelectionMode
from security.shared_round.terms.parameter_facts import Checks, Degraded
from security.shared_round.terms.parameters import RoundParameters
from server.round.shared_round import SharedRound
from server.sharing.round_checks import (
    Patience,
    RoundHopeless,
    frozen_set,
    holders_with_noise,
    left_out,
    may_be_boxed,
    possible_modes,
    reliable,
    selection_of,
)
from tests.looped import looped
from tests.security.shared_round.sealed_round import make_round

CHECKED = SelectionMode.CHECKED
GROUPED = SelectionMode.DEGRADED_GROUPED
UNCHECKED = SelectionMode.DEGRADED_UNCHECKED


def params_of(degraded: Degraded, checks: Checks = Checks.NORM) -> RoundParameters:

    return replace(make_round(checks=checks), degraded=degraded)


@looped(
    "degraded, num_openings, modes",
    [
        (Degraded.WAIT, 5, (CHECKED,)),
        (Degraded.WAIT, 4, ()),
        (Degraded.GROUPED, 5, (CHECKED, GROUPED)),
        (Degraded.GROUPED, 4, (GROUPED,)),
        (Degraded.GROUPED, 3, ()),
        (Degraded.UNCHECKED, 4, (UNCHECKED,)),
        (Degraded.ABORT, 5, (CHECKED,)),
    ],
)
def test_less_is_checked_only_where_the_parameters_say_so(
    degraded: Degraded, num_openings: int, modes: tuple[SelectionMode, ...]
) -> None:
    assert possible_modes(params_of(degraded), num_openings) == modes


def test_a_round_that_is_to_be_given_up_is() -> None:
    with pytest.raises(RoundHopeless, match="4 of at least 5 share holders"):
        possible_modes(params_of(Degraded.ABORT), 4)


@looped(
    "degraded, num_votes, may_be",
    [
        (Degraded.WAIT, 5, True),
        (Degraded.WAIT, 4, False),
        (Degraded.GROUPED, 4, True),
        (Degraded.UNCHECKED, 4, True),
        (Degraded.UNCHECKED, 3, False),
        (Degraded.ABORT, 5, True),
        (Degraded.ABORT, 3, False),
    ],
)
def test_a_box_holds_those_who_are_to_open_the_checks(
    degraded: Degraded, num_votes: int, may_be: bool
) -> None:
    assert may_be_boxed(params_of(degraded), num_votes) is may_be


def noised_params(dealers: int = 4) -> RoundParameters:
    """(3, 5), four are a quorum."""
    return replace(make_round(), staleness_weights=(1,), noise_dealers=dealers, noise_stddev=2**20)


def held(*dealers: str) -> dict[int, frozenset[int]]:
    """By holder, from 1, the dealers whose noise it has, written as one string."""
    return {
        holder: frozenset(map(int, each)) for holder, each in enumerate(dealers, start=1) if each
    }


@looped(
    "has, holders, dealers",
    [
        (held("12345", "12345", "12345", "12345", "12345"), {1, 2, 3, 4, 5}, (1, 2, 3, 4)),
        (held("2345", "12345", "12345", "12345", "12345"), {1, 2, 3, 4, 5}, (2, 3, 4, 5)),
        # Holder 2 refuses everybody's noise: it is the one to go.
        (held("12345", "2", "12345", "12345", "12345"), {1, 3, 4, 5}, (1, 2, 3, 4)),
        # Holder 5 is away and dealt nothing.
        (held("1234", "1234", "1234", "1234", ""), {1, 2, 3, 4}, (1, 2, 3, 4)),
        # Dealer 1 sent the others something that only holder 1 takes.
        (held("1234", "234", "234", "234", "234"), set(), ()),
        (held("12345", "12345", "12345", "", ""), set(), ()),
        (held("123", "123", "123", "123", "123"), set(), ()),
        ({}, set(), ()),
    ],
)
def test_the_most_holders_that_have_the_noise_of_enough_dealers(
    has: dict[int, frozenset[int]], holders: set[int], dealers: tuple[int, ...]
) -> None:
    found, chosen = holders_with_noise(noised_params(), has)
    assert (set(found), chosen) == (holders, dealers)


def test_a_round_without_noise_leaves_no_holder_out() -> None:
    nothing = held("", "", "") | {1: frozenset[int](), 2: frozenset[int]()}
    assert holders_with_noise(make_round(), nothing) == (frozenset({1, 2}), ())


def test_a_box_without_enough_holders_for_the_checks_may_be_hopeless() -> None:
    with pytest.raises(RoundHopeless, match="4 of at least 5 share holders"):
        may_be_boxed(params_of(Degraded.ABORT), 4)
    assert may_be_boxed(params_of(Degraded.ABORT, Checks.SUM), 4)


def test_sums_are_opened_from_shares_that_are_to_be_relied_upon() -> None:
    params = params_of(Degraded.WAIT)
    known = SharedRound(
        parameters=params.to_bytes().hex(), holders=(1, 2, 3, 5), liars=(1,), disputed=(3,)
    )
    assert params.has_consistency_mask
    # 2 and 5 alone open nothing: one whose shares were not checked must do.
    assert reliable(params, known, (1, 2, 3, 4, 5)) == (2, 4, 5)
    checked = replace(known, liars=(), disputed=())
    assert reliable(params, checked, (1, 2, 3, 4, 5)) == (1, 2, 3, 5)


@pytest.mark.parametrize("degraded", Degraded)
def test_a_round_without_checks_needs_no_openings(degraded: Degraded) -> None:
    assert possible_modes(params_of(degraded, Checks.SUM), 0) == (CHECKED,)


def test_who_is_left_out_is_told_why() -> None:
    frozen = FrozenSet(
        params_sha256=bytes(32),
        attempt=1,
        members=tuple(
            Member(device_id=name, header_sha256=bytes(32)) for name in ("a", "b", "c", "d")
        ),
    )
    verdict = Verdict(passed=(0, 2, 3), failed={1: FailureReason.NORM})
    selection = Selection(set_sha256=frozen.sha256, mode=CHECKED, sums=((0, 3),))
    assert left_out(frozen, verdict, selection) == (("b", "norm"), ("c", "not_selected"))


def test_set_and_selection_are_those_that_the_state_remembers() -> None:
    params = make_round()
    shared = SharedRound(
        parameters=params.to_bytes().hex(),
        attempt=3,
        members=(("a", "01" * 32), ("b", "02" * 32)),
        dealers=(("noise:2", "03" * 32),),
        mode="degraded_grouped",
        sums=((0, 1),),
    )
    frozen = frozen_set(params, shared)
    assert frozen == FrozenSet(
        params_sha256=params.sha256,
        attempt=3,
        members=(
            Member(device_id="a", header_sha256=b"\1" * 32),
            Member(device_id="b", header_sha256=b"\2" * 32),
        ),
        dealers=(Member(device_id="noise:2", header_sha256=b"\3" * 32),),
    )
    selection = selection_of(frozen, shared)
    assert selection == Selection(set_sha256=frozen.sha256, mode=GROUPED, sums=((0, 1),))


@pytest.mark.parametrize(
    ("waited_ms", "for_all", "over"),
    [(0, True, False), (999, True, False), (1_000, False, False), (5_000, False, True)],
)
def test_patience_ends_first_for_all_then_for_enough(
    waited_ms: int, for_all: bool, over: bool
) -> None:
    patience = Patience(waited_ms=waited_ms, for_all_ms=1_000, for_enough_ms=5_000)
    assert (patience.waits_for_all, patience.is_over) == (for_all, over)
