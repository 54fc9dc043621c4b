"""The aggregator for compressed updates: sparse ones are combined as they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from aggregators.base import (
    NOTHING_KNOWN,
    Aggregate,
    GradientAggregator,
    ServerKnowledge,
    Update,
    UpdateFacts,
    require_updates,
)
from aggregators.config import AggregatorConfig
from aggregators.engines.engine import LOCAL, Engine
from aggregators.errors import AggregationError
from aggregators.registry import RULES, STEPS, parted, traits_of
from aggregators.rows.sparse_rows import SparseRows, SparseVector
from aggregators.traits import MIN_RANKABLE_DENSITY


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SparseUpdate(UpdateFacts):
    """What one device sent: the coordinates it kept.

    Attributes:
        vector: the entries; every other coordinate is zero.
    """

    vector: SparseVector


AnyUpdate: TypeAlias = Update | SparseUpdate


class CompressedGradientAggregator:
    """Combines sparse and dense updates with one rule. Safe to share between threads."""

    def __init__(self, config: AggregatorConfig, *, engine: Engine = LOCAL) -> None:
        """Prepare the rule.

        Args:
            config: the rule and its settings.
            engine: what computes with rounds of dense updates alone. Rounds with sparse ones are
                combined in this process whatever it is: `SparseRows` has no other home.

        Raises:
            AggregationError: if the configuration names no known rule.
        """
        self._aggregator = GradientAggregator(config, engine=engine)

    def aggregate(
        self,
        updates: Sequence[AnyUpdate],
        knowledge: ServerKnowledge = NOTHING_KNOWN,
    ) -> Aggregate:
        """Check, order, clip and combine updates.

        Args:
            updates: n updates of one dimension, in any order. Not modified.
            knowledge: what the rule may know beside them.

        Returns:
            The aggregate, a dense vector, and each update's part in it.

        Raises:
            TooFewUpdatesError: if the rule needs more updates for the configured f.
            AggregationError: as `GradientAggregator.aggregate` does; and if the rule ranks the
                values of a coordinate while fewer than half of all values were sent: the zeros of
                those that did not send it would outvote the others.

        Guarantees:
            Invariant to the order of `updates`, bit for bit.
            No n x d matrix is made of sparse updates.

        Cost: that of the rule on the stored entries; O(d) memory for the result.
        """
        dense = [update for update in updates if isinstance(update, Update)]
        if dense and len(dense) == len(updates):
            return self._aggregator.aggregate(dense, knowledge)
        ordered = sorted(updates, key=lambda update: update.key)
        require_updates(ordered)
        vectors = [_sparse(update) for update in ordered]
        for update, vector in zip(ordered, vectors, strict=True):
            if vector.dim != vectors[0].dim:
                message = f"update {update.key!r} of dim={vector.dim} must have the same dimension"
                message += f" as update {ordered[0].key!r} of dim={vectors[0].dim}"
                raise AggregationError(message)
        return self._aggregator.aggregate_rows(ordered, SparseRows.of(vectors), knowledge)


def ranks_values(config: AggregatorConfig) -> bool:
    """Tell whether the rule ranks the values of each coordinate.

    Raises:
        AggregationError: if no rule or step has such a name.
    """
    return traits_of(config.rule).ranks_values


def sparse_problem(config: AggregatorConfig, *, ratio: float) -> str | None:
    """Say why a rule cannot combine updates of which each holds `ratio` of all coordinates.

    None: it can, as far as is known before there are updates. A rule that ranks values then takes
    them as dense vectors: of sparse ones, those that hold less than they may could be too few.
    """
    if ranks_values(config) and ratio < MIN_RANKABLE_DENSITY:
        return (
            f"rule={config.rule!r} ranks the values of each coordinate, and the zeros of devices"
            f" that did not choose it would outvote the others: take a rule that works by"
            f" distances, such as multi-krum, a ratio of at least {MIN_RANKABLE_DENSITY}, or a"
            f" method that sends the same coordinates for all devices"
        )
    steps, name = parted(config.rule)
    scales = [*(STEPS[step].scales_rows for step in steps), RULES[name].scales_rows]
    mixing = next((at for at, step in enumerate(steps) if STEPS[step].mixes_rows), len(steps))
    if any(scales[mixing:]) and mixing < len(steps):
        return (
            f"rule={config.rule!r} would shorten means of updates, which sparse ones do not allow"
        )
    return None


def densified(update: AnyUpdate) -> Update:
    """Write the zeros that a sparse update stands for."""
    if isinstance(update, Update):
        return update
    vector = np.zeros(update.vector.dim, np.float32)
    vector[update.vector.indices] = update.vector.values
    return Update(key=update.key, num_samples=update.num_samples, trust=update.trust, vector=vector)


def _sparse(update: AnyUpdate) -> SparseVector:
    if isinstance(update, SparseUpdate):
        return update.vector
    try:
        return SparseVector.of_dense(update.vector)
    except AggregationError as error:
        message = f"update {update.key!r}: {error}"
        raise AggregationError(message) from error
