"""The round as a pure state machine.

Rule 1: a phase changes only in `step`, and only as the literal table `ALLOWED` says.
Rule 2: no I/O, no clock, no randomness; time arrives inside events, in milliseconds of the store's
clock.

An event that the present phase does not name, or whose guard does not hold, is rejected and changes
nothing. Terminal phases accept nothing. The driver persists each new value by compare-and-set on
(`number`, `version`) and performs effects only after the commit, so a step may be computed twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, assert_never

from privacy.charge import Charge, Sampling
from server.round.round_privacy import RoundPrivacy
from server.round.shared_round import SharedRound


class Phase(Enum):
    """Where a round stands."""

    SELECTING = "selecting"  # waits for enough eligible devices
    COLLECTING = "collecting"  # the cohort is fixed; updates are admitted
    FREEZING = "freezing"  # shared rounds: the holders agree on the set of members
    CHECKING = "checking"  # shared rounds: the holders open the checks; the selection is derived
    AGGREGATING = "aggregating"  # the contributions are fixed; the candidate is computed
    VALIDATING = "validating"  # the candidate is stored; it is checked
    PUBLISHED = "published"  # the candidate is the task's current model version
    ABANDONED = "abandoned"  # no model came of it; `reason` says why


class AbandonReason(Enum):
    """Why a round ended without a model version."""

    TOO_FEW_CONTRIBUTIONS = "too_few_contributions"
    AGGREGATION_FAILED = "aggregation_failed"
    VALIDATION_FAILED = "validation_failed"
    BASE_VERSION_CHANGED = "base_version_changed"  # somebody rolled the model back meanwhile
    REFUSED_BY_HOLDERS = "refused_by_holders"  # share holders will not take part in such a round
    FREEZE_FAILED = "freeze_failed"  # too few holders or members for a frozen set
    CHECKS_FAILED = "checks_failed"  # too few holders opened the checks, or too few members passed
    BUDGET_EXHAUSTED = "budget_exhausted"  # refused before it began: it would cost too much privacy


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateModel:
    """The model a round proposes, already durable in the blob store."""

    sha256: str
    size_bytes: int
    state_sha256: str = ""  # of the aggregator's state that belongs to it
    excluded: int  # contributions the rule gave no weight
    metrics: Mapping[str, float] = field(default_factory=dict)
    liars: tuple[int, ...] = ()  # share holders caught with a wrong share of the sums
    next_clipping_norm: float | None = None  # C of the rounds after; None: as before


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round of one task. `version` counts its committed changes, from 1.

    `shared` is set from COLLECTING on where the round is shared.

    A sampled round is one that claims amplification by sampling. Whether it is published must not
    tell who was drawn, so it needs no contribution, and its goal is its whole cohort: nobody in it
    displaces another.
    """

    task: str
    number: int
    version: int
    phase: Phase
    base_version: int
    reporting_goal: int
    min_contributions: int
    collection_timeout_ms: int
    opened_at_ms: int
    phase_since_ms: int
    seed: int
    cohort_size: int = 0
    deadline_ms: int = 0  # COLLECTING only: no update is admitted at or after it
    candidate: CandidateModel | None = None
    reason: AbandonReason | None = None
    detail: str = ""
    traceparent: str = ""
    max_staleness: int = 0  # updates of as many versions before the base are admitted
    shared: SharedRound | None = None
    privacy: RoundPrivacy | None = None  # None: the round's model is not private
    compression: str = ""  # names the settings that its devices were told; "": updates are dense

    def __post_init__(self) -> None:
        if self.number < 1 or self.version < 1 or self.base_version < 1:
            msg = (
                f"number={self.number}, version={self.version} and "
                f"base_version={self.base_version} must be >= 1"
            )
            raise ValueError(msg)
        least = 0 if self.is_sampled else 1
        if not least <= self.min_contributions <= self.reporting_goal:
            msg = (
                f"min_contributions={self.min_contributions} must satisfy "
                f"{least} <= min_contributions <= reporting_goal={self.reporting_goal}"
            )
            raise ValueError(msg)
        if self.collection_timeout_ms < 1:
            msg = f"collection_timeout_ms={self.collection_timeout_ms} must be >= 1"
            raise ValueError(msg)
        if self.max_staleness < 0:
            msg = f"max_staleness={self.max_staleness} must be >= 0"
            raise ValueError(msg)

    @property
    def is_terminal(self) -> bool:
        """Whether the round has ended: no event leads out of its phase."""
        return not ALLOWED[self.phase]

    @property
    def charge(self) -> Charge | None:
        """What the round's release costs; None: the round is not private."""
        return None if self.privacy is None else Charge.from_text(self.privacy.charge)

    @property
    def is_sampled(self) -> bool:
        """Whether its privacy rests on who happened to be drawn."""
        charge = self.charge
        return charge is not None and charge.sampling is not Sampling.NONE

    @property
    def is_spent(self) -> bool:
        """Whether its charge stays, should it end now: something may have been released."""
        if self.privacy is None:
            return False
        uploads = self.privacy.releases_uploads and self.phase is not Phase.SELECTING
        return uploads or self.phase in COMPUTING

    @property
    def oldest_version(self) -> int:
        """Oldest model version an update may have been trained from."""
        return max(1, self.base_version - self.max_staleness)


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortSelected:
    """The cohort is chosen; its members may submit from now on."""

    at_ms: int
    cohort_size: int
    shared: SharedRound | None = None  # set: the round is shared


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalReached:
    """As many updates as wanted were admitted."""

    at_ms: int
    accepted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineReached:
    """The collection deadline passed."""

    at_ms: int
    accepted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeRetried:
    """Holders voted for different sets, or one lacks a share: a new attempt is proposed."""

    at_ms: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFrozen:
    """A quorum of share holders voted for one set of members."""

    at_ms: int
    members: tuple[tuple[str, str], ...]  # device id, header hash
    set_sha256: str
    excluded: tuple[tuple[str, str], ...] = ()  # device id, reason
    dealers: tuple[tuple[str, str], ...] = ()  # holders whose noise is in the sums, header hash


@dataclass(frozen=True, slots=True, kw_only=True)
class ChecksDone:
    """The checks were opened, and which sums are to be opened follows from them."""

    at_ms: int
    mode: str
    sums: tuple[tuple[int, ...], ...]
    selection_sha256: str
    excluded: tuple[tuple[str, str], ...] = ()  # members in no sum, reason
    blamed: int = 0
    holders: tuple[int, ...] = ()
    liars: tuple[int, ...] = ()
    disputed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedRoundFailed:
    """The share holders cannot or will not bring the round to its next phase."""

    at_ms: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateReady:
    """The aggregate was applied and the candidate stored."""

    at_ms: int
    candidate: CandidateModel


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationFailed:
    """The rule refused the contributions."""

    at_ms: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidatePassed:
    """The candidate passed every check."""

    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateFailed:
    """A check failed."""

    at_ms: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseVersionChanged:
    """The task's current model is no longer the one this round trains from."""

    at_ms: int
    current_version: int


Event = (
    CohortSelected
    | GoalReached
    | DeadlineReached
    | FreezeRetried
    | SetFrozen
    | ChecksDone
    | SharedRoundFailed
    | CandidateReady
    | AggregationFailed
    | CandidatePassed
    | CandidateFailed
    | BaseVersionChanged
)

ALLOWED: Final[Mapping[Phase, Mapping[type[Event], frozenset[Phase]]]] = {
    Phase.SELECTING: {
        CohortSelected: frozenset({Phase.COLLECTING}),
        BaseVersionChanged: frozenset({Phase.ABANDONED}),
    },
    Phase.COLLECTING: {
        GoalReached: frozenset({Phase.AGGREGATING, Phase.FREEZING}),
        DeadlineReached: frozenset({Phase.AGGREGATING, Phase.FREEZING, Phase.ABANDONED}),
        SharedRoundFailed: frozenset({Phase.ABANDONED}),
        BaseVersionChanged: frozenset({Phase.ABANDONED}),
    },
    Phase.FREEZING: {
        FreezeRetried: frozenset({Phase.FREEZING}),
        SetFrozen: frozenset({Phase.CHECKING}),
        SharedRoundFailed: frozenset({Phase.ABANDONED}),
        BaseVersionChanged: frozenset({Phase.ABANDONED}),
    },
    Phase.CHECKING: {
        ChecksDone: frozenset({Phase.AGGREGATING}),
        SharedRoundFailed: frozenset({Phase.ABANDONED}),
        BaseVersionChanged: frozenset({Phase.ABANDONED}),
    },
    Phase.AGGREGATING: {
        CandidateReady: frozenset({Phase.VALIDATING}),
        AggregationFailed: frozenset({Phase.ABANDONED}),
        BaseVersionChanged: frozenset({Phase.ABANDONED}),
    },
    Phase.VALIDATING: {
        CandidatePassed: frozenset({Phase.PUBLISHED}),
        CandidateFailed: frozenset({Phase.ABANDONED}),
        BaseVersionChanged: frozenset({Phase.ABANDONED}),
    },
    Phase.PUBLISHED: {},
    Phase.ABANDONED: {},
}


_FAILURES: Final[Mapping[Phase, AbandonReason]] = {
    Phase.COLLECTING: AbandonReason.REFUSED_BY_HOLDERS,
    Phase.FREEZING: AbandonReason.FREEZE_FAILED,
    Phase.CHECKING: AbandonReason.CHECKS_FAILED,
}


COMPUTING: Final = frozenset({Phase.AGGREGATING, Phase.VALIDATING})
"""Phases in which noise may have been drawn and sums opened: whatever ends here was a release."""


class RoundEventRejected(Exception):
    """The round's phase does not allow the event; the round is unchanged."""

    def __init__(self, round_: Round, event: Event, why: str) -> None:
        super().__init__(
            f"round {round_.number} in phase {round_.phase.value} rejects "
            f"{type(event).__name__}: {why}"
        )
        self.phase = round_.phase
        self.event = event


def step(round_: Round, event: Event) -> Round:
    """Apply one event.

    Returns:
        The round after the event, its `version` one higher. `phase_since_ms` stays where the phase
        does.

    Raises:
        RoundEventRejected: if the phase does not name the event or its guard does not hold.

    Guarantees:
        Every change of phase is in `ALLOWED`.
        The same round and event give the same result.
        Terminal phases accept nothing.
    """
    if type(event) not in ALLOWED[round_.phase]:
        raise RoundEventRejected(round_, event, "not allowed in this phase")
    after = _apply(round_, event)
    since_ms = event.at_ms if after.phase is not round_.phase else round_.phase_since_ms
    return replace(after, version=round_.version + 1, phase_since_ms=since_ms)


def _apply(round_: Round, event: Event) -> Round:  # noqa: C901, PLR0911  # one case an event
    match event:
        case CohortSelected():
            return _start_collecting(round_, event)
        case GoalReached():
            if event.accepted < round_.reporting_goal:
                why = f"accepted={event.accepted} < reporting_goal={round_.reporting_goal}"
                raise RoundEventRejected(round_, event, why)
            return replace(round_, phase=_after_collecting(round_))
        case DeadlineReached():
            return _end_collecting(round_, event)
        case FreezeRetried() | SetFrozen() | ChecksDone() | SharedRoundFailed():
            return _apply_shared(round_, event)
        case CandidateReady():
            return replace(round_, phase=Phase.VALIDATING, candidate=event.candidate)
        case AggregationFailed():
            return _abandon(round_, AbandonReason.AGGREGATION_FAILED, event.detail)
        case CandidatePassed():
            return replace(round_, phase=Phase.PUBLISHED)
        case CandidateFailed():
            return _abandon(round_, AbandonReason.VALIDATION_FAILED, event.detail)
        case BaseVersionChanged():
            if event.current_version == round_.base_version:
                raise RoundEventRejected(round_, event, "the base version is still current")
            detail = f"version {event.current_version} replaced {round_.base_version}"
            return _abandon(round_, AbandonReason.BASE_VERSION_CHANGED, detail)
        case _:
            assert_never(event)


def _start_collecting(round_: Round, event: CohortSelected) -> Round:
    if event.cohort_size < round_.min_contributions:
        why = f"cohort_size={event.cohort_size} < min_contributions={round_.min_contributions}"
        raise RoundEventRejected(round_, event, why)
    return replace(
        round_,
        phase=Phase.COLLECTING,
        cohort_size=event.cohort_size,
        reporting_goal=_goal(round_, event.cohort_size),
        deadline_ms=event.at_ms + round_.collection_timeout_ms,
        shared=event.shared,
    )


def _goal(round_: Round, cohort_size: int) -> int:
    # A cohort smaller than the goal can still be complete before the deadline.
    return cohort_size if round_.is_sampled else min(round_.reporting_goal, cohort_size)


def _end_collecting(round_: Round, event: DeadlineReached) -> Round:
    if event.at_ms < round_.deadline_ms:
        why = f"at_ms={event.at_ms} is before deadline_ms={round_.deadline_ms}"
        raise RoundEventRejected(round_, event, why)
    if event.accepted < round_.min_contributions:
        detail = f"{event.accepted} of at least {round_.min_contributions}"
        return _abandon(round_, AbandonReason.TOO_FEW_CONTRIBUTIONS, detail)
    return replace(round_, phase=_after_collecting(round_))


def _after_collecting(round_: Round) -> Phase:
    return Phase.AGGREGATING if round_.shared is None else Phase.FREEZING


def _apply_shared(
    round_: Round, event: FreezeRetried | SetFrozen | ChecksDone | SharedRoundFailed
) -> Round:
    shared = round_.shared
    if shared is None:
        raise RoundEventRejected(round_, event, "the round is not shared")
    match event:
        case FreezeRetried():
            if event.attempt <= shared.attempt:
                why = f"attempt={event.attempt} must be above {shared.attempt}"
                raise RoundEventRejected(round_, event, why)
            return replace(round_, shared=replace(shared, attempt=event.attempt))
        case SetFrozen():
            _require_enough(round_, event, len(event.members), shared.min_members)
            frozen = replace(
                shared,
                members=event.members,
                dealers=event.dealers,
                set_sha256=event.set_sha256,
                excluded=shared.excluded + event.excluded,
            )
            return replace(round_, phase=Phase.CHECKING, shared=frozen)
        case ChecksDone():
            _require_enough(round_, event, sum(map(len, event.sums)), shared.min_members)
            checked = replace(
                shared,
                mode=event.mode,
                sums=event.sums,
                selection_sha256=event.selection_sha256,
                excluded=shared.excluded + event.excluded,
                blamed=event.blamed,
                holders=event.holders,
                liars=event.liars,
                disputed=event.disputed,
            )
            return replace(round_, phase=Phase.AGGREGATING, shared=checked)
        case SharedRoundFailed():
            return _abandon(round_, _FAILURES[round_.phase], event.detail)


def _require_enough(round_: Round, event: Event, members: int, least: int) -> None:
    if members < least:
        why = f"members={members} < min_members={least}"
        raise RoundEventRejected(round_, event, why)


def _abandon(round_: Round, reason: AbandonReason, detail: str) -> Round:
    return replace(round_, phase=Phase.ABANDONED, reason=reason, detail=detail)
