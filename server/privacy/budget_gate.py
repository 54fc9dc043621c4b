"""Opens the rounds of a private task as far as its budget goes, and says what they cost."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Protocol

from privacy.budget import Accountant, Budget, LedgerState, charged_counts
from privacy.charge import Charge, Sampling
from server.round.observers import RoundObserver
from server.round.ports import CommitResult, FinishedRound, Lease, PrivacyLedger, RoundStore
from server.round.records import finished_round
from server.round.round_privacy import RoundCost, RoundPrivacy
from server.round.state import AbandonReason, Phase, Round


class PrivateRounds(Protocol):
    """A private task's budget and the privacy of its next round.

    Pure but for time: the same ledger gives the same answers on every coordinator with the same
    settings. Scoring is done off the event loop. Nothing here changes the ledger: the driver asks,
    and commits what follows together with the round's own transition.
    """

    @property
    def budget(self) -> Budget:
        """What may be spent, with the cap of participations."""
        ...

    @property
    def noise(self) -> str:
        """Who adds it, as `RoundPrivacy.noise`."""
        ...

    async def plan(self, ledger: LedgerState) -> RoundPrivacy:
        """Return the privacy of the next round.

        Its `charge` decides how the cohort is drawn (`Charge.sampling`, its probability, population
        and cohort), whatever the settings say by then. `clipping_norm` is `ledger.clipping_norm`
        where adaptive clipping is on and has moved it, else the plan's. Sampled rounds are never
        abandoned for their count: their aggregate must also work with no contribution at all (it is
        noise then).
        """
        ...

    async def refusal(self, ledger: LedgerState, privacy: RoundPrivacy) -> str | None:
        """Say why one more round, with this privacy, would exceed the budget; None: it would not.

        `privacy.budget.allows` decides. Operators see the text, also in the audit log.
        """
        ...

    async def epsilon(self, counts: Mapping[str, int], accountant: Accountant) -> float:
        """Compute epsilon, at the budget's delta, of so many releases of each charge."""
        ...

    async def remaining(self, ledger: LedgerState, privacy: RoundPrivacy, *, limit: int) -> int:
        """Return the most further rounds like this one that the budget allows, up to `limit`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A round and the outcome of committing it.

    Attributes:
        round_: as it was committed.
        result: of the commit.
        ledger: as it is after that; None: the round is not private.
        refused: record of a round that never began.
    """

    round_: Round
    result: CommitResult
    ledger: LedgerState | None = None
    refused: FinishedRound | None = None


class BudgetGate:
    """Between a task's driver and its privacy ledger.

    Every step is safe to repeat: what a dead leader left is found in the ledger. Whoever exhausts
    the budget says so once; each process looks again once, when it starts to lead, because its
    settings may allow more.

    Args:
        task: name of the task.
        private: None: the task's rounds are not private (any more).
        rounds: opens rounds, with the reservation of their charge.
        ledger: what was charged so far.
        observer: metrics.
    """

    def __init__(
        self,
        task: str,
        *,
        private: PrivateRounds | None,
        rounds: RoundStore,
        ledger: PrivacyLedger,
        observer: RoundObserver,
    ) -> None:
        self._task = task
        self._private = private
        self._rounds = rounds
        self._ledger = ledger
        self._observer = observer
        self._refused_at: int | None = None  # revision of the ledger
        self._has_told = False

    def mismatch(self, round_: Round) -> str | None:
        """Say why this process must not compute the round: it would release what is not charged."""
        privacy, private = round_.privacy, self._private
        if privacy is None:
            return None if private is None else "the task is private and the round is not"
        if private is None:
            return "the round is private and the task is not any more"
        if privacy.noise != private.noise:
            # Its updates were asked for without the noise that this process takes to be in them.
            return f"noise={privacy.noise!r} of the round must be {private.noise!r}, as the task's"
        return None

    async def open(self, round_: Round, lease: Lease) -> Opening | None:
        """Commit a new round with its charge reserved, or its refusal; None: refused before.

        Guarantees:
            A round that would exceed the budget is not opened.
            The round and the reservation of its charge are one step of the store, as are the
            refusal and what devices are told from then on.
        """
        if self._private is None:
            return Opening(round_=round_, result=await self._rounds.commit(round_, lease=lease))
        ledger = await self._ledger.ledger(self._task)
        if ledger.is_exhausted and ledger.revision == self._refused_at:
            return None
        await self._tell(self._private, ledger)
        privacy = await self._private.plan(ledger)
        refusal = await self._private.refusal(ledger, privacy)
        if refusal is None:
            opened = _private_round(round_, privacy, ledger, self._private.budget)
            result = await self._rounds.open_round(
                opened, ledger_revision=ledger.revision, lease=lease
            )
            # A leader that slept may find that its heir has opened the round meanwhile.
            if opened.number not in ledger.reserved:
                ledger = ledger.reserve(opened.number, Charge.from_text(privacy.charge))
            return Opening(round_=opened, result=result, ledger=ledger)
        if ledger.is_exhausted:
            self._refused_at = ledger.revision
            return None
        return await self._refuse(replace(round_, privacy=privacy), refusal, ledger, lease)

    async def cost(self, ending: Round) -> RoundCost | None:
        """Tell what a round that is about to end costs, as the store settles it; None: not private.

        Args:
            ending: the round in the phase that it ends from.
        """
        if ending.privacy is None:
            return None
        ledger = await self._ledger.ledger(self._task)
        is_charged = ending.is_spent
        if ending.number not in ledger.reserved:  # lost; the store will charge it all the same
            ledger = ledger.reserve(ending.number, Charge.from_text(ending.privacy.charge))
        ledger = ledger.settle(ending.number, charged=is_charged)
        return self._cost(ending.privacy, ledger, is_charged=is_charged)

    async def scored(self, record: FinishedRound) -> FinishedRound:
        """Return the record with the epsilon that is spent after it; metrics are told."""
        private, cost = self._private, record.privacy
        if private is None or cost is None:
            return record
        budget, ledger = private.budget, await self._ledger.ledger(self._task)
        self._observer.ledger_changed(self._task, ledger)
        if cost.counts is None:
            return record
        self._has_told = True
        epsilon = await private.epsilon(cost.counts, budget.accountant)
        self._observer.privacy_spent(self._task, epsilon=epsilon, budget=budget)
        known = epsilon if isfinite(epsilon) else None
        return replace(record, privacy=replace(cost, epsilon=known, delta=budget.delta))

    async def _refuse(
        self, round_: Round, refusal: str, ledger: LedgerState, lease: Lease
    ) -> Opening:
        refused = replace(
            round_,
            phase=Phase.ABANDONED,
            reason=AbandonReason.BUDGET_EXHAUSTED,
            detail=refusal,
        )
        cost = None
        if refused.privacy is not None:
            cost = self._cost(refused.privacy, ledger, is_charged=False)
        record = finished_round(refused, contributions=(), rejected=0, model=None, cost=cost)
        result = await self._rounds.exhaust(
            refused, record=record, ledger_revision=ledger.revision, lease=lease
        )
        after = replace(ledger, is_exhausted=True)
        return Opening(round_=refused, result=result, ledger=after, refused=record)

    def _cost(self, privacy: RoundPrivacy, ledger: LedgerState, *, is_charged: bool) -> RoundCost:
        cap = None if self._private is None else self._private.budget.max_participations
        counts = charged_counts(ledger, max_participations=cap)
        return RoundCost(
            charge=privacy.charge,
            is_charged=is_charged,
            clipping_norm=privacy.clipping_norm,
            counts=None if ledger.uncharged else {c.to_text(): n for c, n in counts.items()},
        )

    async def _tell(self, private: PrivateRounds, ledger: LedgerState) -> None:
        """Report what was spent before this process began; later `scored` tells of each round."""
        if self._has_told:
            return
        self._has_told = True
        budget = private.budget
        counts = charged_counts(ledger, max_participations=budget.max_participations)
        told = {charge.to_text(): count for charge, count in counts.items()}
        spent = await private.epsilon(told, budget.accountant)
        self._observer.ledger_changed(self._task, ledger)
        self._observer.privacy_spent(
            self._task, epsilon=float("inf") if ledger.uncharged else spent, budget=budget
        )


def _private_round(
    round_: Round, privacy: RoundPrivacy, ledger: LedgerState, budget: Budget
) -> Round:
    """Return the round with its privacy, and what follows from that."""
    cap = budget.max_participations
    if cap is not None:
        # That is what the charge was allowed for, should the settings change meanwhile.
        privacy = replace(privacy, max_participations=max(cap, ledger.max_participations))
    private = replace(round_, privacy=privacy)
    charge = private.charge
    if charge is None or charge.sampling is Sampling.NONE:
        return private
    return replace(private, min_contributions=0)
