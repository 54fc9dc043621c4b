"""The basic aggregator: checks a round's updates, clips them and applies one rule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.registry import make_rule
from aggregators.rows import Rows, Vector
from privacy.clipping import clip_scale, l2_norm

__all__ = ["Aggregate", "AggregatorConfig", "GradientAggregator", "Update"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Update:
    """What one device sent.

    Attributes:
        key: unique within the round, such as the submission id. Updates are put in the order of
            their keys, so the aggregate does not depend on the order of arrival.
        vector: (d,), float32: trained weights minus received weights. May be a memory map.
        num_samples: samples the device trained on, as it says; from 1.
    """

    key: str
    vector: Vector
    num_samples: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Aggregate:
    """What a round's updates became. Arrays of length n are in the order of `keys`.

    Attributes:
        vector: (d,), float64: the aggregate.
        keys: the updates' keys, ascending.
        weights: (n,), float64, sums to 1: each update's weight, 0 where it was excluded. For
            rules that work by coordinate: its weight before values are dropped.
        selected: (n,), bool: updates that were not excluded as a whole.
        scores: (n,), float64: what the rule ranked updates by, less is better; None where it
            does not rank them.
        norms: (n,), float64: L2 norms before clipping.
        num_clipped: updates that were shrunk to the clipping norm.
    """

    vector: NDArray[np.float64]
    keys: tuple[str, ...]
    weights: NDArray[np.float64]
    selected: NDArray[np.bool_]
    scores: NDArray[np.float64] | None
    norms: NDArray[np.float64]
    num_clipped: int


class GradientAggregator:
    """Combines a round's updates with one rule. Holds no state: safe to share between threads."""

    def __init__(self, config: AggregatorConfig) -> None:
        """Prepare the rule.

        Raises:
            AggregationError: if the configuration names no known rule.
        """
        self._config = config
        self._rule = make_rule(config)

    def aggregate(self, updates: Sequence[Update]) -> Aggregate:
        """Check, order, clip and combine updates.

        Args:
            updates: n updates of one dimension, in any order. Not modified.

        Returns:
            The aggregate and each update's part in it.

        Raises:
            TooFewUpdatesError: if the rule needs more updates for the configured f.
            AggregationError: if there are no updates, a key repeats, a sample count is below 1,
                or the vectors are not finite float32 vectors of one dimension.

        Guarantees:
            Invariant to the order of `updates`, bit for bit.

        Cost: that of the rule, plus O(n d) time. Vectors are not copied, clipped or not.
        """
        ordered = sorted(updates, key=lambda update: update.key)
        _check(ordered)
        norms = np.array([_finite_norm(update) for update in ordered])
        scales = self._clip_scales(norms)
        rows = Rows(vectors=tuple(update.vector for update in ordered), scales=scales)
        cap = self._config.max_num_samples
        weights = np.array([min(update.num_samples, cap) for update in ordered], dtype=np.float64)
        result = self._rule(rows, weights)
        return Aggregate(
            vector=result.vector,
            keys=tuple(update.key for update in ordered),
            weights=result.weights,
            selected=result.selected,
            scores=result.scores,
            norms=norms,
            num_clipped=sum(scale != 1.0 for scale in scales),
        )

    def _clip_scales(self, norms: NDArray[np.float64]) -> tuple[float, ...]:
        clip_norm = self._config.clipping_norm
        if clip_norm is None:
            return (1.0,) * len(norms)
        return tuple(clip_scale(float(norm), clip_norm) for norm in norms)


def _check(updates: Sequence[Update]) -> None:
    """Refuse updates, sorted by key, that no rule could combine."""
    if not updates:
        message = "updates must hold at least one update"
        raise AggregationError(message)
    for before, after in pairwise(updates):
        if before.key == after.key:
            message = f"key {after.key!r} must be unique within the round"
            raise AggregationError(message)
    first = updates[0]
    for update in updates:
        _check_one(update)
        if update.vector.shape != first.vector.shape:
            message = f"update {update.key!r} of dim={update.vector.shape[0]} must have the same"
            message += f" dimension as update {first.key!r} of dim={first.vector.shape[0]}"
            raise AggregationError(message)


def _check_one(update: Update) -> None:
    vector = update.vector
    if vector.ndim != 1 or vector.shape[0] == 0:
        message = f"update {update.key!r} of shape {vector.shape} must have shape (d,), d >= 1"
        raise AggregationError(message)
    if vector.dtype != np.float32:
        message = f"update {update.key!r} of type {vector.dtype} must be float32"
        raise AggregationError(message)
    if update.num_samples < 1:
        message = f"num_samples={update.num_samples} of update {update.key!r} must be at least 1"
        raise AggregationError(message)


def _finite_norm(update: Update) -> float:
    norm = l2_norm(update.vector)
    if not math.isfinite(norm):
        message = f"update {update.key!r} must be finite: it holds NaN or infinity"
        raise AggregationError(message)
    return norm
