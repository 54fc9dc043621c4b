"""The one loop that drives a task's rounds.

Every coordinator runs one driver per task; the lease decides which of them leads. `tick` reads one
consistent snapshot, computes the next event and commits it; what follows from a phase is done after
its commit and may be done twice, also by another coordinator that took over in between.
"""

import asyncio
import secrets
from dataclasses import dataclass
from typing import Final, Protocol

from server.compression.task_compression import compression_name
from server.config import RoundsConfig
from server.driver.cohort import draw_cohort, offers_needed
from server.driver.leadership import Leadership
from server.errors import Unavailable
from server.privacy.budget_gate import BudgetGate, PrivateRounds
from server.round.observers import RoundObserver
from server.round.ports import (
    AdmissionStore,
    CommitResult,
    FinishedRound,
    Lease,
    ModelRegistry,
    PrivacyLedger,
    RoundStore,
    Snapshot,
)
from server.round.records import finished_round, published_version
from server.round.shared_round import SharedRound
from server.round.state import (
    AggregationFailed,
    BaseVersionChanged,
    CandidateFailed,
    CandidateModel,
    CandidatePassed,
    CandidateReady,
    CohortSelected,
    DeadlineReached,
    Event,
    GoalReached,
    Phase,
    Round,
    SharedRoundFailed,
    step,
)
from server.task.task_info import TaskInfo

ERROR_PAUSE_S: Final = 1.0


class AuditLog(Protocol):
    """Where finished rounds are written down. Idempotent by (task, round)."""

    async def record(self, finished: FinishedRound) -> None:
        """Append the entry of a finished round, unless it is there; durable when it returns."""


class CandidateMaker(Protocol):
    """Makes and checks a round's candidate, and cleans up. Every method may be repeated."""

    async def require_base(self, task: str, version: int) -> None:
        """Read the files of a version that a round is about to open on.

        Raises:
            ServiceError: if they are gone or damaged, or the store does not answer.
        """

    async def aggregate(self, round_: Round) -> CandidateModel | str | None:
        """Build and store the candidate from what the round collected.

        Returns:
            The candidate; or why the round has to be abandoned; None: not yet, ask again soon.
        """

    async def problem(self, round_: Round) -> str | None:
        """Say why the candidate must not be published; None: nothing is wrong with it."""

    async def discard(self, round_: Round) -> None:
        """Delete the files of an abandoned round's candidate."""

    async def purge(self, record: FinishedRound) -> None:
        """Delete the payloads that nobody will ask for once this round has ended."""

    async def sweep(self, task: str, ended: int) -> None:
        """Delete leftover payloads of all rounds up to `ended` that are not kept."""


class SharedRounds(Protocol):
    """The phases that only shared rounds have. Every method may be repeated, by any coordinator.

    `freeze` and `check` return what the round is ready for; None: not yet, ask again soon.
    """

    async def plan(self, round_: Round, *, cohort_size: int) -> SharedRound:
        """Fix the parameters of a round whose cohort, of so many devices, is chosen."""

    async def relay(self, round_: Round, *, accepted: int) -> str | None:
        """Pass the shares of `accepted` updates on to the holders, in the background.

        Returns:
            Why the round has to be abandoned; None: nothing speaks against it.
        """

    async def freeze(self, round_: Round, *, now_ms: int) -> Event | None:
        """Let the holders vote for the set of updates that all of them have."""

    async def check(self, round_: Round, *, now_ms: int) -> Event | None:
        """Let the holders open the checks; derive from them what is summed."""

    async def purge(self, record: FinishedRound) -> None:
        """Let the holders delete the shares of a round that ended."""

    async def close(self) -> None:
        """Stop relaying and close the connections to the holders."""


class Wakeup(Protocol):
    """Waits for news of a task."""

    def mark(self, task: str) -> int:
        """Count the news of a task so far; taken before the state is read."""

    async def wait(self, task: str, *, timeout_s: float, since: int) -> None:
        """Return once there is news of a task after `since`, or after `timeout_s` seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverPorts:
    """What a driver works with."""

    rounds: RoundStore
    admission: AdmissionStore
    ledger: PrivacyLedger
    registry: ModelRegistry
    aggregation: CandidateMaker
    observer: RoundObserver
    audit: AuditLog
    wakeup: Wakeup
    shared: SharedRounds | None = None  # for tasks whose rounds are shared
    private: PrivateRounds | None = None  # for tasks whose rounds are private


class RoundDriver:
    """Drives the rounds of one task while it holds the lease.

    Args:
        info: what to learn and how.
        rounds: lease and polling times.
        ports: stores and observers.
        owner: unique name of this process; the lease is held in it.
    """

    def __init__(
        self, info: TaskInfo, *, rounds: RoundsConfig, ports: DriverPorts, owner: str
    ) -> None:
        self._info = info
        self._task = info.name
        self._terms = info.terms
        self._rounds = rounds
        self._ports = ports
        self._leadership = Leadership(
            ports.rounds,
            task=info.name,
            owner=owner,
            ttl_s=rounds.lease_ttl_s,
            on_change=lambda leads: ports.observer.leading(info.name, leads=leads),
        )
        self._gate = BudgetGate(
            info.name,
            private=ports.private,
            rounds=ports.rounds,
            ledger=ports.ledger,
            observer=ports.observer,
        )
        self._wait_s = rounds.poll_interval_s
        self._was_stale = False
        self._has_swept = False

    async def run(self) -> None:
        """Tick until cancelled; then give the lease back."""
        wakeup = self._ports.wakeup
        try:
            while True:
                mark = wakeup.mark(self._task)
                if not await self._guarded_tick():
                    await wakeup.wait(self._task, timeout_s=self._wait_s, since=mark)
        finally:
            if self._ports.shared is not None:
                await self._ports.shared.close()
            await self._leadership.give_back()

    async def tick(self) -> bool:
        """Do the next thing, if there is one.

        Returns:
            True where something was done and another tick may find more to do.

        Raises:
            StoreUnavailable: nothing is known of the last commit; the next tick finds out.
        """
        self._wait_s = self._rounds.poll_interval_s
        lease = await self._leadership.claim()
        if lease is None:
            return False
        snapshot = await self._ports.rounds.snapshot(self._task)
        round_ = snapshot.round
        if round_ is not None and not self._has_swept:
            ended = round_.number if round_.is_terminal else round_.number - 1
            await self._ports.aggregation.sweep(round_.task, ended)
            self._has_swept = True
        if round_ is None or round_.is_terminal:
            settled = await self._settle()
            return await self._open(snapshot, lease) or settled
        if snapshot.current_version != round_.base_version:
            event = BaseVersionChanged(
                at_ms=snapshot.now_ms, current_version=snapshot.current_version
            )
            return await self._finish(round_, event, snapshot, lease)
        if round_.phase is Phase.SELECTING:
            done = await self._select(round_, snapshot, lease)
        elif round_.phase is Phase.COLLECTING:
            done = await self._collect(round_, snapshot, lease)
        elif round_.phase in {Phase.FREEZING, Phase.CHECKING}:
            done = await self._share(round_, snapshot, lease)
        elif round_.phase is Phase.AGGREGATING:
            done = await self._aggregate(round_, lease)
        else:
            done = await self._validate(round_, lease)
        return done

    async def _guarded_tick(self) -> bool:
        try:
            return await self.tick()
        except Unavailable as error:
            self._ports.observer.tick_failed(self._task, error)
        except Exception as error:  # the loop is an edge: it must outlive a defect
            self._ports.observer.tick_failed(self._task, error)
            await asyncio.sleep(ERROR_PAUSE_S)
        return False

    async def _open(self, snapshot: Snapshot, lease: Lease) -> bool:
        if snapshot.published_rounds >= self._terms.num_rounds:
            return False
        async with self._leadership.kept():
            await self._ports.aggregation.require_base(self._task, snapshot.current_version)
            opening = await self._gate.open(self._new_round(snapshot), lease)
        if opening is None:
            return False
        result = await self._resolve(opening.result, opening.round_)
        if result is CommitResult.COMMITTED:
            if opening.ledger is not None:
                self._ports.observer.ledger_changed(self._task, opening.ledger)
            if opening.refused is not None:
                self._ports.observer.round_finished(opening.refused)
        return self._committed(result, opening.round_, None)

    def _new_round(self, snapshot: Snapshot) -> Round:
        number = snapshot.round.number + 1 if snapshot.round else 1
        return Round(
            task=self._task,
            number=number,
            version=1,
            phase=Phase.SELECTING,
            base_version=snapshot.current_version,
            reporting_goal=self._terms.reporting_goal,
            min_contributions=self._terms.min_contributions,
            collection_timeout_ms=self._terms.collection_timeout_ms,
            opened_at_ms=snapshot.now_ms,
            phase_since_ms=snapshot.now_ms,
            seed=secrets.randbits(128) if self._terms.seed is None else self._terms.seed,
            traceparent=self._ports.observer.new_traceparent(self._task, number),
            max_staleness=self._terms.max_staleness,
            compression=compression_name(self._info.compression),
        )

    async def _select(self, round_: Round, snapshot: Snapshot, lease: Lease) -> bool:
        waited_s = (snapshot.now_ms - round_.phase_since_ms) / 1000
        needed = offers_needed(round_, self._info, waited_s=waited_s)
        if snapshot.waiting < needed:
            return False
        candidates = await self._ports.admission.candidates(self._task)
        cohort = draw_cohort(round_, self._info, candidates, needed=needed)
        if cohort is None:
            return False
        shared = None
        if self._ports.shared is not None:
            shared = await self._ports.shared.plan(round_, cohort_size=len(cohort))
        event = CohortSelected(at_ms=snapshot.now_ms, cohort_size=len(cohort), shared=shared)
        after = step(round_, event)
        result = await self._ports.rounds.open_cohort(after, cohort=cohort, lease=lease)
        return self._committed(await self._resolve(result, after), after, round_)

    async def _collect(self, round_: Round, snapshot: Snapshot, lease: Lease) -> bool:
        now, accepted = snapshot.now_ms, snapshot.accepted
        if self._ports.shared is not None and round_.shared is not None:
            refusal = await self._ports.shared.relay(round_, accepted=accepted)
            if refusal is not None:
                event = SharedRoundFailed(at_ms=now, detail=refusal)
                return await self._finish(round_, event, snapshot, lease)
        if accepted >= round_.reporting_goal:
            return await self._advance(round_, GoalReached(at_ms=now, accepted=accepted), lease)
        if now < round_.deadline_ms:
            self._wait_s = min(self._wait_s, (round_.deadline_ms - now) / 1000)
            return False
        return await self._apply(round_, DeadlineReached(at_ms=now, accepted=accepted), lease)

    async def _share(self, round_: Round, snapshot: Snapshot, lease: Lease) -> bool:
        shared, now = self._ports.shared, snapshot.now_ms
        if shared is None:
            detail = "the task is not shared any more"
            return await self._apply(round_, SharedRoundFailed(at_ms=now, detail=detail), lease)
        async with self._leadership.kept():
            with self._ports.observer.span(round_.phase.value, round_):
                work = shared.freeze if round_.phase is Phase.FREEZING else shared.check
                event = await work(round_, now_ms=now)
        return False if event is None else await self._apply(round_, event, lease)

    async def _aggregate(self, round_: Round, lease: Lease) -> bool:
        outcome: CandidateModel | str | None = self._gate.mismatch(round_)
        if outcome is None:
            async with self._leadership.kept():
                outcome = await self._ports.aggregation.aggregate(round_)
        if outcome is None:
            return False
        snapshot = await self._ports.rounds.snapshot(self._task)
        event: Event = (
            AggregationFailed(at_ms=snapshot.now_ms, detail=outcome)
            if isinstance(outcome, str)
            else CandidateReady(at_ms=snapshot.now_ms, candidate=outcome)
        )
        return await self._apply(round_, event, lease)

    async def _validate(self, round_: Round, lease: Lease) -> bool:
        async with self._leadership.kept():
            with self._ports.observer.span("validate", round_):
                problem = await self._ports.aggregation.problem(round_)
        snapshot = await self._ports.rounds.snapshot(self._task)
        at_ms = snapshot.now_ms
        event: Event = (
            CandidatePassed(at_ms=at_ms)
            if problem is None
            else CandidateFailed(at_ms=at_ms, detail=problem)
        )
        return await self._finish(round_, event, snapshot, lease)

    async def _apply(self, round_: Round, event: Event, lease: Lease) -> bool:
        if not step(round_, event).is_terminal:
            return await self._advance(round_, event, lease)
        snapshot = await self._ports.rounds.snapshot(self._task)
        return await self._finish(round_, event, snapshot, lease)

    async def _advance(self, round_: Round, event: Event, lease: Lease) -> bool:
        after = step(round_, event)
        result = await self._ports.rounds.commit(after, lease=lease)
        return self._committed(await self._resolve(result, after), after, round_)

    async def _finish(self, round_: Round, event: Event, snapshot: Snapshot, lease: Lease) -> bool:
        after = step(round_, event)
        ports, task = self._ports, self._task
        model = None
        if after.phase is Phase.PUBLISHED:
            base = await ports.registry.model(task, round_.base_version)
            version = snapshot.latest_version + 1
            model = published_version(after, version=version, base=base)
        record = finished_round(
            after,
            contributions=await ports.admission.contributions(task, round_.number),
            rejected=await ports.admission.rejections(task, round_.number),
            model=model,
            cost=await self._gate.cost(round_),
        )
        with self._ports.observer.span(after.phase.value, round_):
            result = await ports.rounds.finish(after, record=record, model=model, lease=lease)
        result = await self._resolve(result, after)
        if result is CommitResult.COMMITTED:
            self._ports.observer.round_finished(record)
            if model is None:
                await self._ports.aggregation.discard(after)
        return self._committed(result, after, round_)

    async def _settle(self) -> bool:
        """Write down and clean up after finished rounds; also those a dead leader left."""
        finished = await self._ports.rounds.unaudited(self._task)
        for record in finished:
            await self._ports.audit.record(await self._gate.scored(record))
            if self._ports.shared is not None and record.shared is not None:
                await self._ports.shared.purge(record)
            await self._ports.aggregation.purge(record)
            await self._ports.rounds.mark_audited(record.task, record.number)
        return bool(finished)

    async def _resolve(self, result: CommitResult, after: Round) -> CommitResult:
        """Take a refused commit for committed where it is what the store holds: a lost answer."""
        if result in {CommitResult.STALE, CommitResult.BASE_CHANGED}:
            stored = (await self._ports.rounds.snapshot(self._task)).round
            if stored == after:
                return CommitResult.COMMITTED
        return result

    def _committed(self, result: CommitResult, after: Round, before: Round | None) -> bool:
        if result is CommitResult.COMMITTED:
            self._ports.observer.phase_entered(after, before=before)
        # After any other result the next tick reads what is true now: at once, but not for ever.
        stale_again = result is CommitResult.STALE and self._was_stale
        self._was_stale = result is CommitResult.STALE
        return result is not CommitResult.FENCED and not stale_again
