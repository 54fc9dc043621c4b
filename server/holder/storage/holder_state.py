"""A share holder's side of one round, as a pure state machine.

Rule 1: a phase changes only in `step`, and only as the literal table `ALLOWED` says.
Rule 2: no I/O, no clock, no randomness; what was checked arrives inside events.

Every accepted event stands for one statement that the holder signs. The shell makes the new state
and the statement durable together, before the statement leaves; who asks for a statement that is
stored already gets it again and no event happens. Whatever an event or a guard does not name is
refused and changes nothing.

Two rules keep a coordinator, with the holders it may own, from seeing more than one sum:

- one vote an attempt, one commitment a round, one release that is the commitment's;
- once the holder has locked itself to a set's ballot box, or opened anything of the set, it votes
  for no other set and reveals its pieces of the coin for no other box. The masks that devices add
  to what is opened hide one opening; with a second, under another coin, the difference is bare.
  Pieces are revealed to a quorum of locks, so at most one box of a round ever has a coin: two
  quorums share an honest holder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, assert_never

MAX_VOTES: Final = 100
# A caller that skips more of them could leave none for others.
MAX_SKIP: Final = 16


class HolderPhase(Enum):
    """How far the holder has gone in a round."""

    OPEN = "open"  # shares are stored; nothing is signed but receipts
    FROZEN = "frozen"  # it voted for a set
    LOCKED = "locked"  # it bound itself to that set's ballot box
    COIN = "coin"  # it revealed its pieces of that box's coin
    OPENINGS = "openings"  # it opened that set's checks
    BLAME = "blame"  # it opened tests of single members
    COMMITTED = "committed"  # it bound itself to the sums that it will release
    RELEASED = "released"  # it released its share of them
    PURGED = "purged"  # the shares are deleted


class Refusal(Enum):
    """Why an event was refused; values are reasons on the wire."""

    NOT_FROZEN = "NOT_FROZEN"
    SET_CONFLICT = "SET_CONFLICT"
    SUM_CONFLICT = "SUM_CONFLICT"
    ROUND_CLOSED = "ROUND_CLOSED"
    ROUND_PURGED = "ROUND_PURGED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """A set that the holder voted for."""

    attempt: int
    set_sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderRound:
    """One round at one holder.

    Attributes:
        ballots: every vote, ascending by attempt; the last one counts.
        box_sha256: ballot box that the holder is locked to, of the last set; or empty.
        coin_sha256: coin that the checks of the last set were opened or judged with; or empty.
        selection_sha256: sums that the holder is bound to, of the set `committed_set`; or empty.
    """

    phase: HolderPhase = HolderPhase.OPEN
    ballots: tuple[Ballot, ...] = ()
    box_sha256: bytes = b""
    coin_sha256: bytes = b""
    committed_set: bytes = b""
    selection_sha256: bytes = b""

    def __post_init__(self) -> None:
        attempts = [ballot.attempt for ballot in self.ballots]
        if attempts != sorted(set(attempts)):
            msg = f"ballots of attempts {attempts} must ascend"
            raise ValueError(msg)
        if bool(self.selection_sha256) != bool(self.committed_set):
            msg = "selection_sha256 and committed_set must be given together"
            raise ValueError(msg)

    @property
    def set_sha256(self) -> bytes:
        """The set of the last vote; empty before the first."""
        return self.ballots[-1].set_sha256 if self.ballots else b""

    @property
    def is_committed(self) -> bool:
        """True when the holder may release one selection and no other."""
        return bool(self.selection_sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareOffered:
    """A device's share, which is not stored yet, passed every check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeProposed:
    """A set of which the holder has every share."""

    attempt: int
    set_sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class VotesShown:
    """A quorum voted for the set; the holder's vote is in the box, and it agrees with the rest."""

    set_sha256: bytes
    box_sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LocksShown:
    """A quorum locked itself to that box."""

    set_sha256: bytes
    box_sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CoinShown:
    """A quorum's shares gave the set's coin."""

    set_sha256: bytes
    coin_sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupsFailed:
    """Openings show that groups of the set failed their test."""

    set_sha256: bytes
    coin_sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionDerived:
    """The holder derived the selection from the evidence by itself."""

    set_sha256: bytes
    coin_sha256: bytes
    selection_sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentsShown:
    """A quorum committed itself to the selection."""

    set_sha256: bytes
    selection_sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeAsked:
    """The round is over."""


Event = (
    ShareOffered
    | FreezeProposed
    | VotesShown
    | LocksShown
    | CoinShown
    | GroupsFailed
    | SelectionDerived
    | CommitmentsShown
    | PurgeAsked
)

ALLOWED: Final[Mapping[HolderPhase, Mapping[type[Event], HolderPhase]]] = {
    HolderPhase.OPEN: {
        ShareOffered: HolderPhase.OPEN,
        FreezeProposed: HolderPhase.FROZEN,
        PurgeAsked: HolderPhase.PURGED,
    },
    # A holder that was away for a step goes on with the next: others have done it.
    HolderPhase.FROZEN: {
        ShareOffered: HolderPhase.FROZEN,
        FreezeProposed: HolderPhase.FROZEN,
        VotesShown: HolderPhase.LOCKED,
        LocksShown: HolderPhase.COIN,
        CoinShown: HolderPhase.OPENINGS,
        GroupsFailed: HolderPhase.BLAME,
        SelectionDerived: HolderPhase.COMMITTED,
        CommitmentsShown: HolderPhase.RELEASED,
        PurgeAsked: HolderPhase.PURGED,
    },
    HolderPhase.LOCKED: {
        ShareOffered: HolderPhase.LOCKED,
        LocksShown: HolderPhase.COIN,
        CoinShown: HolderPhase.OPENINGS,
        GroupsFailed: HolderPhase.BLAME,
        SelectionDerived: HolderPhase.COMMITTED,
        CommitmentsShown: HolderPhase.RELEASED,
        PurgeAsked: HolderPhase.PURGED,
    },
    HolderPhase.COIN: {
        ShareOffered: HolderPhase.COIN,
        CoinShown: HolderPhase.OPENINGS,
        GroupsFailed: HolderPhase.BLAME,
        SelectionDerived: HolderPhase.COMMITTED,
        CommitmentsShown: HolderPhase.RELEASED,
        PurgeAsked: HolderPhase.PURGED,
    },
    HolderPhase.OPENINGS: {
        LocksShown: HolderPhase.OPENINGS,
        GroupsFailed: HolderPhase.BLAME,
        SelectionDerived: HolderPhase.COMMITTED,
        CommitmentsShown: HolderPhase.RELEASED,
        PurgeAsked: HolderPhase.PURGED,
    },
    HolderPhase.BLAME: {
        LocksShown: HolderPhase.BLAME,
        CoinShown: HolderPhase.BLAME,
        GroupsFailed: HolderPhase.BLAME,
        SelectionDerived: HolderPhase.COMMITTED,
        CommitmentsShown: HolderPhase.RELEASED,
        PurgeAsked: HolderPhase.PURGED,
    },
    HolderPhase.COMMITTED: {
        CommitmentsShown: HolderPhase.RELEASED,
        PurgeAsked: HolderPhase.PURGED,
    },
    HolderPhase.RELEASED: {
        CommitmentsShown: HolderPhase.RELEASED,
        PurgeAsked: HolderPhase.PURGED,
    },
    HolderPhase.PURGED: {
        PurgeAsked: HolderPhase.PURGED,
    },
}


class HolderEventRefused(Exception):
    """The phase or a guard does not allow the event; the round is unchanged."""

    def __init__(self, refusal: Refusal, why: str) -> None:
        super().__init__(why)
        self.refusal = refusal
        self.why = why


def step(round_: HolderRound, event: Event) -> HolderRound:
    """Apply one event.

    Raises:
        HolderEventRefused: if the phase does not name the event or its guard does not hold.

    Guarantees:
        Every change of phase is in `ALLOWED`.
        Over all events: one ballot an attempt, one box and one selection a round, and no ballot
        after a lock or after anything was opened.
        The same round and event give the same result.
    """
    after = ALLOWED[round_.phase].get(type(event))
    if after is None:
        raise _not_allowed(round_, event)
    match event:
        case ShareOffered() | PurgeAsked():
            return replace(round_, phase=after)
        case FreezeProposed():
            return _freeze(round_, event, after)
        case VotesShown() | LocksShown():
            return replace(_with_box(round_, event.set_sha256, event.box_sha256), phase=after)
        case CoinShown() | GroupsFailed():
            return replace(_with_coin(round_, event.set_sha256, event.coin_sha256), phase=after)
        case SelectionDerived():
            bound = _with_coin(round_, event.set_sha256, event.coin_sha256)
            return replace(
                bound,
                phase=after,
                committed_set=event.set_sha256,
                selection_sha256=event.selection_sha256,
            )
        case CommitmentsShown():
            return _release(round_, event, after)
        case _:
            assert_never(event)


def _freeze(round_: HolderRound, event: FreezeProposed, after: HolderPhase) -> HolderRound:
    last = round_.ballots[-1].attempt if round_.ballots else 0
    if event.attempt <= last:
        why = f"attempt={event.attempt} must exceed {last}, the last one voted in"
        raise HolderEventRefused(Refusal.SET_CONFLICT, why)
    if event.attempt > last + MAX_SKIP:
        why = f"attempt={event.attempt} must be at most {last + MAX_SKIP} after {last}"
        raise HolderEventRefused(Refusal.SET_CONFLICT, why)
    if len(round_.ballots) >= MAX_VOTES:
        why = f"the holder has voted {MAX_VOTES} times in this round"
        raise HolderEventRefused(Refusal.SET_CONFLICT, why)
    ballot = Ballot(attempt=event.attempt, set_sha256=event.set_sha256)
    return replace(round_, phase=after, ballots=(*round_.ballots, ballot))


def _with_box(round_: HolderRound, set_sha256: bytes, box_sha256: bytes) -> HolderRound:
    """Bind the round to one box: who has seen pieces for one could choose another."""
    _require_current(round_, set_sha256)
    if round_.box_sha256 and round_.box_sha256 != box_sha256:
        why = "the holder has locked itself to other votes for this set"
        raise HolderEventRefused(Refusal.SET_CONFLICT, why)
    return replace(round_, box_sha256=box_sha256)


def _with_coin(round_: HolderRound, set_sha256: bytes, coin_sha256: bytes) -> HolderRound:
    """Bind the round to one coin: openings under two of them would bare what masks hide."""
    _require_current(round_, set_sha256)
    if round_.coin_sha256 and round_.coin_sha256 != coin_sha256:
        why = "the holder has opened this set with another coin"
        raise HolderEventRefused(Refusal.SET_CONFLICT, why)
    return replace(round_, coin_sha256=coin_sha256)


def _release(round_: HolderRound, event: CommitmentsShown, after: HolderPhase) -> HolderRound:
    if round_.is_committed:
        shown = (event.set_sha256, event.selection_sha256)
        if shown != (round_.committed_set, round_.selection_sha256):
            why = "the holder has committed itself to other sums of this round"
            raise HolderEventRefused(Refusal.SUM_CONFLICT, why)
        return replace(round_, phase=after)
    # A quorum is bound to this selection, so none can be to another: it is adopted, for ever, also
    # by a holder that voted for another set meanwhile.
    if all(ballot.set_sha256 != event.set_sha256 for ballot in round_.ballots):
        raise HolderEventRefused(Refusal.NOT_FROZEN, "the holder has not voted for this set")
    return replace(
        round_,
        phase=after,
        committed_set=event.set_sha256,
        selection_sha256=event.selection_sha256,
    )


def _require_current(round_: HolderRound, set_sha256: bytes) -> None:
    if round_.set_sha256 == set_sha256:
        return
    if any(ballot.set_sha256 == set_sha256 for ballot in round_.ballots):
        why = f"the holder has voted for another set since, in attempt {round_.ballots[-1].attempt}"
        raise HolderEventRefused(Refusal.SET_CONFLICT, why)
    raise HolderEventRefused(Refusal.NOT_FROZEN, "the holder has not voted for this set")


def _not_allowed(round_: HolderRound, event: Event) -> HolderEventRefused:
    if round_.phase is HolderPhase.PURGED:
        return HolderEventRefused(Refusal.ROUND_PURGED, "the round's shares are deleted")
    if round_.phase is HolderPhase.OPEN:
        return HolderEventRefused(Refusal.NOT_FROZEN, "the holder has voted for no set")
    if isinstance(event, ShareOffered):
        return HolderEventRefused(Refusal.ROUND_CLOSED, "the round takes no more shares")
    if isinstance(event, SelectionDerived):
        return HolderEventRefused(Refusal.SUM_CONFLICT, "the holder has committed itself already")
    why = f"the holder is bound to a set: it is in phase {round_.phase.value}"
    return HolderEventRefused(Refusal.SET_CONFLICT, why)
