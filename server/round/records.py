"""What is kept of a round when it ends: its record and, if it was published, the new version."""

from collections.abc import Sequence
from dataclasses import replace

from server.round.ports import Contribution, FinishedRound, ModelVersion
from server.round.round_privacy import RoundCost
from server.round.shared_round import SharedRound
from server.round.state import Round


def finished_round(
    ended: Round,
    *,
    contributions: Sequence[Contribution],
    rejected: int,
    model: ModelVersion | None,
    cost: RoundCost | None = None,
) -> FinishedRound:
    """Return the record of a round in a terminal phase; `cost` is that of its privacy."""
    candidate = ended.candidate
    reason = ended.reason.value if ended.reason else ""
    return FinishedRound(
        task=ended.task,
        number=ended.number,
        decision=ended.phase.value,
        reason=": ".join(part for part in (reason, ended.detail) if part),
        base_version=ended.base_version,
        model_version=model.version if model else None,
        cohort_size=ended.cohort_size,
        accepted=len(contributions),
        contributors=tuple(contribution.device_id for contribution in contributions),
        rejected=rejected,
        excluded=candidate.excluded if candidate else 0,
        started_at_ms=ended.opened_at_ms,
        finished_at_ms=ended.phase_since_ms,
        bytes_up=sum(contribution.payload_bytes for contribution in contributions),
        traceparent=ended.traceparent,
        metrics=dict(candidate.metrics) if candidate else {},
        shared=_shared_part(ended),
        privacy=cost,
    )


def published_version(published: Round, *, version: int, base: ModelVersion) -> ModelVersion:
    """Return metadata of the version that a published round's candidate becomes.

    Args:
        published: the round.
        version: its number.
        base: the version it trained from.

    Raises:
        ValueError: if the round has no candidate.
    """
    candidate = published.candidate
    if candidate is None:
        msg = f"round {published.number} has no candidate"
        raise ValueError(msg)
    moved = candidate.next_clipping_norm
    return ModelVersion(
        version=version,
        parent=published.base_version,
        round_number=published.number,
        sha256=candidate.sha256,
        size_bytes=candidate.size_bytes,
        dim=base.dim,
        created_at_ms=published.phase_since_ms,
        metrics=dict(candidate.metrics),
        state_sha256=candidate.state_sha256,
        clipping_norm=base.clipping_norm if moved is None else moved,
    )


def _shared_part(ended: Round) -> SharedRound | None:
    if ended.shared is None or ended.candidate is None:
        return ended.shared
    liars = {*ended.shared.liars, *ended.candidate.liars}
    return replace(ended.shared, liars=tuple(sorted(liars)))
