"""What the server tells the outside about itself: metrics, logs, traces and the audit log.

Called after commits. Observing never decides anything and never fails a call.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from opentelemetry import trace
from opentelemetry.util.types import Attributes
from prometheus_client import Counter

from monitoring.logs import EventLogger
from monitoring.metrics import Metrics
from monitoring.tracing import context_from_traceparent, current_traceparent
from privacy.budget import Budget, LedgerState
from server.round.ports import FinishedRound, Submission
from server.round.shared_round import SharedRound
from server.round.state import Phase, Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Implements the observers of rounds, of devices and of sharing."""

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
        """Count and log a committed change of phase."""
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
        """Count and log a round that ended, with what the holders of a shared one did."""
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
        """Show what a private task has spent, round by round."""
        metrics = self.metrics
        metrics.privacy_rounds_committed.labels(task=task).set(ledger.rounds_committed)
        metrics.privacy_rounds_reserved.labels(task=task).set(len(ledger.reserved))
        metrics.privacy_budget_exhausted.labels(task=task).set(ledger.is_exhausted)
        if ledger.clipping_norm is not None:
            metrics.privacy_clipping_norm.labels(task=task).set(ledger.clipping_norm)

    def privacy_spent(self, task: str, *, epsilon: float, budget: Budget) -> None:
        """Show what a private task has spent of its budget, as epsilon."""
        self.metrics.privacy_epsilon_spent.labels(task=task).set(epsilon)
        self.metrics.privacy_epsilon_budget.labels(task=task).set(budget.epsilon)

    def leading(self, task: str, *, leads: bool) -> None:
        """Show and log whether this process drives the task."""
        self.metrics.leader.labels(task=task).set(leads)
        self.log.info("leadership_changed", task=task, leads=leads)

    def tick_failed(self, task: str, error: Exception) -> None:
        """Log why the driver could not go on."""
        self.log.warning("tick_failed", task=task, error=f"{type(error).__name__}: {error}")

    def aggregated(
        self, round_: Round, *, rule: str, seconds: float, metrics: Mapping[str, float]
    ) -> None:
        """Time an aggregation; count the updates that it clipped and left out."""
        task = round_.task
        self.metrics.aggregation_duration_seconds.labels(task=task, rule=rule).observe(seconds)
        self.metrics.updates_clipped_total.labels(task=task).inc(metrics.get("num_clipped", 0))
        self.metrics.updates_excluded_total.labels(task=task, rule=rule).inc(metrics["excluded"])

    def span(self, name: str, round_: Round) -> AbstractContextManager[object]:
        """Return a span of the round's trace, around something this process does for it."""
        return self.tracer.start_as_current_span(
            name,
            context=context_from_traceparent(round_.traceparent),
            attributes={"fedagg.task": round_.task, "fedagg.round": round_.number},
        )

    def rolled_back(self, task: str, version: int) -> None:
        """Count and log an operator's return to an earlier version."""
        self.metrics.rollbacks_total.labels(task=task).inc()
        self.metrics.model_version.labels(task=task).set(version)
        self.log.warning("rolled_back", task=task, model_version=version)

    def checked_in(self, task: str, outcome: str) -> None:
        """Count an answer to a check-in."""
        self.metrics.check_ins_total.labels(task=task, outcome=outcome).inc()

    def model_sent(self, task: str, num_bytes: int) -> None:
        """Count bytes of model files on their way to a device."""
        self.metrics.model_download_bytes_total.labels(task=task).inc(num_bytes)

    def accepted(self, submission: Submission, *, dense_bytes: int) -> None:
        """Count an admitted update and its bytes."""
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
        """Count a refused update by its reason."""
        self.metrics.updates_refused_total.labels(task=task, reason=reason).inc()

    def upload_started(self) -> None:
        """Count a chunked upload as under way."""
        self.metrics.uploads_in_flight.inc()

    def upload_ended(self) -> None:
        """Count a chunked upload as over."""
        self.metrics.uploads_in_flight.dec()

    def holder_reachable(self, task: str, holder: int, *, reachable: bool) -> None:
        """Show whether a holder answered the last call."""
        self.metrics.share_holder_up.labels(task=task, holder=str(holder)).set(reachable)

    def holder_refused(self, task: str, holder: int, reason: str) -> None:
        """Count a call that a holder refused."""
        self.metrics.share_holder_refusals_total.labels(
            task=task, holder=str(holder), reason=reason
        ).inc()

    def share_relayed(self, task: str, holder: int, outcome: str) -> None:
        """Count a share that found its holder, or was refused there."""
        self.metrics.shares_relayed_total.labels(
            task=task, holder=str(holder), outcome=outcome
        ).inc()

    def opened(self, task: str, holder: int, kind: str) -> None:
        """Count a statement of a holder that was checked and taken."""
        self.metrics.shared_statements_total.labels(task=task, holder=str(holder), kind=kind).inc()

    def _shared_finished(self, task: str, shared: SharedRound) -> None:
        for _, reason in shared.excluded:
            self.metrics.shared_members_excluded_total.labels(task=task, reason=reason).inc()
        for holder in shared.liars:
            self.metrics.share_holder_lies_total.labels(task=task, holder=str(holder)).inc()
            self.log.warning("share_holder_lied", task=task, holder=holder)
        if shared.is_degraded:
            self.metrics.shared_rounds_degraded_total.labels(task=task, mode=shared.mode).inc()
