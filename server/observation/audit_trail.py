"""What goes into the audit log of a round."""

from collections import Counter as Tally

from monitoring.audit_entry import MAX_STRING_CHARS, AuditEntry, AuditValue
from monitoring.audit_logger import AuditLogger
from monitoring.metrics import Metrics
from security.shared_round.terms.leakage import leakage
from security.shared_round.terms.member_set import SelectionMode
from security.shared_round.terms.parameters import RoundParameters
from server.processes.thread_pool import Workers
from server.round.ports import FinishedRound
from server.round.round_privacy import RoundCost
from server.round.shared_round import SharedRound


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
        """Append a finished round's entry; durable when it returns."""
        if await self._workers.run(self._logger.append, audit_entry(finished)):
            self._lines.labels(task=finished.task).inc()


def audit_entry(finished: FinishedRound) -> AuditEntry:
    """Return what the audit log keeps of a round; never an update."""
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
    """Return all that the task has spent, this round included."""
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
    """Tell who could see what: of a round that failed, the most that can have been opened."""
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
