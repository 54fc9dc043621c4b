"""Which updates cannot be aggregated, and why."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

import numpy as np

from aggregators.base import Update
from aggregators.errors import AggregationError
from privacy.clipping import l2_norm


class Reason(Enum):
    """Why an update cannot be used. Values are stable: they go into audit logs."""

    WRONG_SHAPE = "wrong_shape"
    WRONG_TYPE = "wrong_type"
    NOT_FINITE = "not_finite"
    BAD_SAMPLE_COUNT = "bad_sample_count"
    BAD_TRUST = "bad_trust"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """An update that was left out."""

    key: str
    reason: Reason


def usable(
    updates: Sequence[Update], *, dim: int | None = None
) -> tuple[list[Update], tuple[Rejection, ...]]:
    """Part updates into those a rule can combine and those it cannot.

    Args:
        updates: any updates, in any order.
        dim: d; None: the dimension of most of the vectors, of equally many the least.

    Returns:
        The usable ones and the others, both in the order of their keys.

    Raises:
        AggregationError: if a key repeats: one of the two would be counted twice.
    """
    ordered = sorted(updates, key=lambda update: update.key)
    for before, after in pairwise(ordered):
        if before.key == after.key:
            message = f"key {after.key!r} must be unique within the round"
            raise AggregationError(message)
    expected = _usual_dim(ordered) if dim is None else dim
    reasons = [_reason(update, expected) for update in ordered]
    kept = [update for update, reason in zip(ordered, reasons, strict=True) if reason is None]
    rejections = tuple(
        Rejection(key=update.key, reason=reason)
        for update, reason in zip(ordered, reasons, strict=True)
        if reason is not None
    )
    return kept, rejections


def _reason(update: Update, dim: int) -> Reason | None:
    if update.vector.shape != (dim,) or dim == 0:
        return Reason.WRONG_SHAPE
    if update.vector.dtype != np.float32:
        return Reason.WRONG_TYPE
    if not update.num_samples >= 1:
        return Reason.BAD_SAMPLE_COUNT
    if not 0.0 <= update.trust <= 1.0:
        return Reason.BAD_TRUST
    if not np.isfinite(l2_norm(update.vector)):
        return Reason.NOT_FINITE
    return None


def _usual_dim(updates: Sequence[Update]) -> int:
    counts = Counter(
        update.vector.shape[0]
        for update in updates
        if update.vector.ndim == 1 and update.vector.shape[0] > 0
    )
    most = max(counts.values(), default=0)
    return min((dim for dim, count in counts.items() if count == most), default=0)
