"""What a coordinator decides in a shared round: pure functions of what holders stated."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from security.shared_round.opening.verdicts import Verdict
from security.shared_round.terms.member_set import (
    MODE_OF,
    FrozenSet,
    Member,
    Selection,
    SelectionMode,
)
from security.shared_round.terms.parameter_facts import Degraded
from security.shared_round.terms.parameters import RoundParameters
from server.round.shared_round import SharedRound

# Refusals of a round that its holder will repeat for ever.
FINAL_REFUSALS: Final = frozenset(
    {
        "WEAKER_THAN_POLICY",
        "WRONG_ROUND_PARAMETERS",
        "MALFORMED_REQUEST",
        "PARAMETERS_CONFLICT",
        "ROUND_PURGED",
    }
)
NOT_RECEIVED: Final = "not_received"  # by some holder
NOT_SELECTED: Final = "not_selected"  # by the rule, or over where groups do not come out even


class RoundHopeless(Exception):
    """The round cannot go on, however long one waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a phase waits, in milliseconds of the store's clock.

    Attributes:
        waited_ms: since the phase began.
        for_all_ms: how long every holder is waited for.
        for_enough_ms: how long the round is not given up.
    """

    waited_ms: int
    for_all_ms: int
    for_enough_ms: int

    @property
    def waits_for_all(self) -> bool:
        """Whether holders that are missing are still waited for."""
        return self.waited_ms < self.for_all_ms

    @property
    def is_over(self) -> bool:
        """Whether the round is given up for lack of holders."""
        return self.waited_ms >= self.for_enough_ms


def possible_modes(params: RoundParameters, num_openings: int) -> tuple[SelectionMode, ...]:
    """Tell how the round may be judged with so many holders' openings, best first; none: wait.

    Raises:
        RoundHopeless: if the parameters say that such a round opens nothing.
    """
    needed = _openings_needed(params)
    modes = []
    if num_openings >= needed:
        modes.append(SelectionMode.CHECKED)
    elif params.degraded is Degraded.ABORT:
        msg = f"{num_openings} of at least {needed} share holders opened the checks"
        raise RoundHopeless(msg)
    fallback = MODE_OF.get(params.degraded)
    if params.is_checked and fallback is not None and num_openings >= params.quorum:
        modes.append(fallback)
    return tuple(modes)


def holders_with_noise(
    params: RoundParameters, held: Mapping[int, frozenset[int]]
) -> tuple[frozenset[int], tuple[int, ...]]:
    """Pick holders that all have the noise of as many dealers as the round asks for.

    A holder that refuses others' noise leaves itself out, and not them.

    Args:
        params: the round.
        held: by holder, the dealers whose noise it has.

    Returns:
        The most holders for which there are so many dealers, and the first of these; of equally
        many holders the first. Nobody where not even a quorum is left. Without noise everybody.

    Cost: 2^n set operations, n <= 7.
    """
    if not params.has_noise:
        return frozenset(held), ()
    for size in range(len(held), params.quorum - 1, -1):
        for holders in itertools.combinations(sorted(held), size):
            dealers = sorted(frozenset.intersection(*(held[holder] for holder in holders)))
            if len(dealers) >= params.noise_dealers:
                return frozenset(holders), tuple(dealers[: params.noise_dealers])
    return frozenset(), ()


def may_be_boxed(params: RoundParameters, num_votes: int) -> bool:
    """Tell whether the coin may be opened with so many votes: nobody else opens checks afterwards.

    Raises:
        RoundHopeless: if the parameters say that the round opens nothing with so few.
    """
    if num_votes < params.quorum:
        return False
    if num_votes < _openings_needed(params):
        if params.degraded is Degraded.ABORT:
            msg = f"{num_votes} of at least {_openings_needed(params)} share holders know the set"
            raise RoundHopeless(msg)
        return params.degraded in MODE_OF
    return True


def reliable(
    params: RoundParameters, shared: SharedRound, released: Iterable[int]
) -> tuple[int, ...]:
    """Return holders, ascending, whose shares of the sums are to be used.

    Not those that lied, or at which some member's share is wrong. Where shares were checked, only
    holders whose shares were, unless they are too few.
    """
    usable = sorted({*released} - {*shared.liars, *shared.disputed})
    checked = [holder for holder in usable if holder in shared.holders]
    if params.has_consistency_mask and len(checked) >= params.threshold:
        return tuple(checked)
    return tuple(usable)


def _openings_needed(params: RoundParameters) -> int:
    """Count openings that the full checks take."""
    return max(params.quorum, params.scheme.product_shares) if params.is_checked else 0


def frozen_set(params: RoundParameters, shared: SharedRound) -> FrozenSet:
    """Return the set that was frozen, as the holders hash it."""
    return FrozenSet(
        params_sha256=params.sha256,
        attempt=shared.attempt,
        members=_members(shared.members),
        dealers=_members(shared.dealers),
    )


def _members(named: Iterable[tuple[str, str]]) -> tuple[Member, ...]:
    return tuple(
        Member(device_id=device, header_sha256=bytes.fromhex(header)) for device, header in named
    )


def selection_of(frozen: FrozenSet, shared: SharedRound) -> Selection:
    """Return the selection that was derived, as the holders hash it."""
    return Selection(
        set_sha256=frozen.sha256,
        mode=SelectionMode[shared.mode.upper()],
        sums=shared.sums,
    )


def left_out(
    frozen: FrozenSet, verdict: Verdict, selection: Selection
) -> tuple[tuple[str, str], ...]:
    """Return members that are in no sum, with the reason of each."""
    opened = set(selection.members)
    found = []
    for position, member in enumerate(frozen.members):
        if position not in opened:
            failure = verdict.failed.get(position)
            found.append((member.device_id, failure.value if failure else NOT_SELECTED))
    return tuple(found)
