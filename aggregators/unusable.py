"""Which updates cannot be aggregated, and why."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

import numpy as np

from aggregators.compressed import AnyUpdate, SparseUpdate
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
    updates: Sequence[AnyUpdate], *, dim: int | None = None
) -> tuple[list[AnyUpdate], tuple[Rejection, ...]]:
    """Part updates into those a rule can combine and those it cannot, but for their values.

    Reads no value: what is not finite is found by `finite`, where a rule has met it.

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


def finite(updates: Sequence[AnyUpdate]) -> tuple[list[AnyUpdate], tuple[Rejection, ...]]:
    """Part updates by whether all their values are finite.

    Cost: one reading of the updates.
    """
    good: list[AnyUpdate] = []
    bad: list[Rejection] = []
    for update in updates:
        # Sparse vectors were checked when they were made.
        if isinstance(update, SparseUpdate) or np.isfinite(l2_norm(update.vector)):
            good.append(update)
        else:
            bad.append(Rejection(key=update.key, reason=Reason.NOT_FINITE))
    return good, tuple(bad)


def _reason(update: AnyUpdate, dim: int) -> Reason | None:
    if dim == 0 or _shape(update) != (dim,):
        return Reason.WRONG_SHAPE
    if not isinstance(update, SparseUpdate) and update.vector.dtype != np.float32:
        return Reason.WRONG_TYPE
    if not update.num_samples >= 1:
        return Reason.BAD_SAMPLE_COUNT
    if not 0.0 <= update.trust <= 1.0:
        return Reason.BAD_TRUST
    return None


def _shape(update: AnyUpdate) -> tuple[int, ...]:
    return (update.vector.dim,) if isinstance(update, SparseUpdate) else update.vector.shape


def _usual_dim(updates: Sequence[AnyUpdate]) -> int:
    shapes = [_shape(update) for update in updates]
    counts = Counter(shape[0] for shape in shapes if len(shape) == 1 and shape[0] > 0)
    most = max(counts.values(), default=0)
    return min((dim for dim, count in counts.items() if count == most), default=0)
