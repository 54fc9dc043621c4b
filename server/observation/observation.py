"""What the server tells the outside about itself: metrics, logs, traces and the audit log.

Called after commits. Observing never decides anything and never fails a call.
"""

from collections import Counter as Tally
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from opentelemetry import trace
from opentelemetry.util.types import Attributes
from prometheus_client import Counter

from monitoring.audit_entry import MAX_STRING_CHARS, AuditEntry, AuditValue
from monitoring.audit_logger import AuditLogger
from monitoring.logs import EventLogger
from monitoring.metrics import Metrics
from monitoring.tracing import context_from_traceparent, current_traceparent
from privacy.budget import Budget, LedgerState
from security.shared_round.terms.leakage import leakage
from security.shared_round.terms.member_set import SelectionMode
from security.shared_round.terms.parameters import RoundParameters
from server.processes.thread_pool import Workers
from server.round.ports import FinishedRound, Submission
from server.round.round_privacy import RoundCost
from server.round.shared_round import SharedRound
from server.round.state import Phase, Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Implements the observer ports of the driver and of the services."""

    metrics: Metrics
    log: EventLogger
    tracer: trace.Tracer
    _accepted: dict[str, tuple[Counter, Counter, Counter]] = field(default_factory=dict, init=False)

    def new_traceparent(self, task: str, round_number: int) -> str:
        """Start the round's trace; everything the round does, anywhere, becomes its child."""
        attributes: Attributes = {"fedagg.task": task, "fedagg.round": round_number}
        with self.tracer.start_as_current_span("round", attributes=attributes):
            return current_traceparent()

    def phase_entered(self, round_: Round, *, before: Round | None) -> None:
        task, phase = round_.task, round_.phase
        self.metrics.phase_transitions_total.labels(task=task, phase=phase.value).inc()
        self.metrics.round.labels(task=task).set(round_.number)
        for known in Phase:
            self.metrics.round_phase.labels(task=task, phase=known.value).set(known is phase)
        seconds = (round_.phase_since_ms - before.phase_since_ms) / 1000 if before else 0.0
        self.log.info(
            "phase_entered",
            task=task,
            round=round_.number,
            phase=phase.value,
            cohort_size=round_.cohort_size,
            previous_phase_s=seconds,
            reason=round_.reason.value if round_.reason else "",
            detail=round_.detail,
        )

    def round_finished(self, record: FinishedRound) -> None:
        task = record.task
        self.metrics.rounds_finished_total.labels(task=task, decision=record.decision).inc()
        seconds = (record.finished_at_ms - record.started_at_ms) / 1000
        self.metrics.round_duration_seconds.labels(task=task).observe(seconds)
        if record.shared is not None:
            self._shared_finished(record.task, record.shared)
        if record.model_version is not None:
            self.metrics.model_version.labels(task=task).set(record.model_version)
            self.metrics.aggregate_l2_norm.labels(task=task).set(record.metrics["update_norm"])
        self.log.info(
            "round_finished",
            task=task,
            round=record.number,
            decision=record.decision,
            reason=record.reason,
            model_version=record.model_version,
            contributions=record.accepted,
            rejected=record.rejected,
            excluded=record.excluded,
        )

    def ledger_changed(self, task: str, ledger: LedgerState) -> None:
        metrics = self.metrics
        metrics.privacy_rounds_committed.labels(task=task).set(ledger.rounds_committed)
        metrics.privacy_rounds_reserved.labels(task=task).set(len(ledger.reserved))
        metrics.privacy_budget_exhausted.labels(task=task).set(ledger.is_exhausted)
        if ledger.clipping_norm is not None:
            metrics.privacy_clipping_norm.labels(task=task).set(ledger.clipping_norm)

    def privacy_spent(self, task: str, *, epsilon: float, budget: Budget) -> None:
        self.metrics.privacy_epsilon_spent.labels(task=task).set(epsilon)
        self.metrics.privacy_epsilon_budget.labels(task=task).set(budget.epsilon)

    def leading(self, task: str, *, leads: bool) -> None:
        self.metrics.leader.labels(task=task).set(leads)
        self.log.info("leadership_changed", task=task, leads=leads)

    def tick_failed(self, task: str, error: Exception) -> None:
        self.log.warning("tick_failed", task=task, error=f"{type(error).__name__}: {error}")

    def aggregated(
        self, round_: Round, *, rule: str, seconds: float, metrics: Mapping[str, float]
    ) -> None:
        task = round_.task
        self.metrics.aggregation_duration_seconds.labels(task=task, rule=rule).observe(seconds)
        self.metrics.updates_clipped_total.labels(task=task).inc(metrics.get("num_clipped", 0))
        self.metrics.updates_excluded_total.labels(task=task, rule=rule).inc(metrics["excluded"])

    def span(self, name: str, round_: Round) -> AbstractContextManager[object]:
        """A span of the round's trace, around something this process does for it."""
        return self.tracer.start_as_current_span(
            name,
            context=context_from_traceparent(round_.traceparent),
            attributes={"fedagg.task": round_.task, "fedagg.round": round_.number},
        )

    def accepted(self, submission: Submission, *, dense_bytes: int) -> None:
        counters = self._accepted.get(submission.task)
        if counters is None:  # looking children up costs more than counting
            counters = self._accepted[submission.task] = (
                self.metrics.updates_accepted_total.labels(task=submission.task),
                self.metrics.update_payload_bytes_total.labels(task=submission.task),
                self.metrics.update_dense_bytes_total.labels(task=submission.task),
            )
        updates, payload_total, dense_total = counters
        updates.inc()
        payload_total.inc(submission.payload_bytes)
        dense_total.inc(dense_bytes)

    def refused(self, task: str, reason: str) -> None:
        self.metrics.updates_refused_total.labels(task=task, reason=reason).inc()

    def upload_started(self) -> None:
        self.metrics.uploads_in_flight.inc()

    def upload_ended(self) -> None:
        self.metrics.uploads_in_flight.dec()

    def rolled_back(self, task: str, version: int) -> None:
        self.metrics.rollbacks_total.labels(task=task).inc()
        self.metrics.model_version.labels(task=task).set(version)
        self.log.warning("rolled_back", task=task, model_version=version)

    def holder_reachable(self, task: str, holder: int, *, reachable: bool) -> None:
        self.metrics.share_holder_up.labels(task=task, holder=str(holder)).set(reachable)

    def holder_refused(self, task: str, holder: int, reason: str) -> None:
        self.metrics.share_holder_refusals_total.labels(
            task=task, holder=str(holder), reason=reason
        ).inc()

    def share_relayed(self, task: str, holder: int, outcome: str) -> None:
        self.metrics.shares_relayed_total.labels(
            task=task, holder=str(holder), outcome=outcome
        ).inc()

    def opened(self, task: str, holder: int, kind: str) -> None:
        self.metrics.shared_statements_total.labels(task=task, holder=str(holder), kind=kind).inc()

    def _shared_finished(self, task: str, shared: SharedRound) -> None:
        for _, reason in shared.excluded:
            self.metrics.shared_members_excluded_total.labels(task=task, reason=reason).inc()
        for holder in shared.liars:
            self.metrics.share_holder_lies_total.labels(task=task, holder=str(holder)).inc()
            self.log.warning("share_holder_lied", task=task, holder=holder)
        if shared.is_degraded:
            self.metrics.shared_rounds_degraded_total.labels(task=task, mode=shared.mode).inc()

    def checked_in(self, task: str, outcome: str) -> None:
        self.metrics.check_ins_total.labels(task=task, outcome=outcome).inc()

    def model_sent(self, task: str, num_bytes: int) -> None:
        self.metrics.model_download_bytes_total.labels(task=task).inc(num_bytes)


class AuditTrail:
    """Writes one line per finished round; safe to repeat.

    Args:
        logger: the file.
        workers: threads that may wait for the disk.
        metrics: counts the lines.
    """

    def __init__(self, logger: AuditLogger, workers: Workers, metrics: Metrics) -> None:
        self._logger = logger
        self._workers = workers
        self._lines = metrics.audit_entries_total

    async def record(self, finished: FinishedRound) -> None:
        """Durable when it returns."""
        if await self._workers.run(self._logger.append, audit_entry(finished)):
            self._lines.labels(task=finished.task).inc()


def audit_entry(finished: FinishedRound) -> AuditEntry:
    """What the audit log keeps of a round; never an update."""
    return AuditEntry(
        task=finished.task,
        round_id=finished.number,
        decision=finished.decision,
        reason=finished.reason[:MAX_STRING_CHARS],
        model_version=finished.model_version,
        accepted=finished.accepted,
        rejected=finished.rejected,
        device_ids=finished.contributors,
        privacy_spent=_privacy_spent(finished.privacy),
        at_ms=finished.finished_at_ms,
        details={
            "base_version": finished.base_version,
            "excluded": finished.excluded,
            "mode": "plain" if finished.shared is None else "shared",
            **(_shared_details(finished.shared) if finished.shared else {}),
            **(_privacy_details(finished.privacy) if finished.privacy else {}),
        },
    )


def _privacy_spent(cost: RoundCost | None) -> dict[str, float] | None:
    """All that the task has spent, this round included."""
    if cost is None or cost.epsilon is None or cost.delta is None:
        return None
    return {"epsilon": cost.epsilon, "delta": cost.delta}


def _privacy_details(cost: RoundCost) -> dict[str, AuditValue]:
    return {
        "privacy_charge": cost.charge,
        "privacy_charged": cost.is_charged,
        "clipping_norm": cost.clipping_norm,
    }


def _shared_details(shared: SharedRound) -> dict[str, AuditValue]:
    """Who could see what: of a round that failed on its way, the most that can have been opened."""
    params = RoundParameters.from_bytes(shared.params_bytes)
    opened: tuple[str, ...] = ()
    if shared.set_sha256:
        told = leakage(
            params,
            SelectionMode[shared.mode.upper()] if shared.mode else SelectionMode.CHECKED,
            num_members=len(shared.members),
            num_suspects=shared.blamed,
            num_sums=len(shared.sums),
        )
        opened = tuple(
            f"{who}: {count} {what}"
            for who, numbers in told.items()
            for what, count in numbers.items()
        )
    reasons = Tally(reason for _, reason in shared.excluded)
    return {
        "params_sha256": params.sha256.hex(),
        "committee_sha256": params.committee_sha256.hex(),
        "holders": params.holders,
        "threshold": params.threshold,
        "quorum": params.quorum,
        "checks": params.checks.value,
        "share_format": params.format.value,
        "rule": params.rule,
        "group_size": params.group_size,
        "attempt": shared.attempt,
        "members": len(shared.members),
        "in_sums": sum(map(len, shared.sums)),
        "opened_at_most": opened,
        "excluded_by_reason": tuple(f"{reason}: {reasons[reason]}" for reason in sorted(reasons)),
        "set_sha256": shared.set_sha256,
        "selection_sha256": shared.selection_sha256,
        "selection_mode": shared.mode,
        "degraded": shared.is_degraded,
        "holders_heard": tuple(map(str, shared.holders)),
        "holders_lied": tuple(map(str, shared.liars)),
    }
