"""The aggregator for compressed updates: sparse ones are combined as they are."""

from collections.abc import Sequence
from dataclasses import dataclass

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
from aggregators.errors import AggregationError
from aggregators.sparse_rows import SparseRows, SparseVector


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SparseUpdate(UpdateFacts):
    """What one device sent: the coordinates it kept.

    Attributes:
        vector: the entries; every other coordinate is zero.
    """

    vector: SparseVector


class CompressedGradientAggregator:
    """Combines sparse and dense updates with one rule. Safe to share between threads."""

    def __init__(self, config: AggregatorConfig) -> None:
        """Prepare the rule.

        Raises:
            AggregationError: if the configuration names no known rule.
        """
        self._aggregator = GradientAggregator(config)

    def aggregate(
        self,
        updates: Sequence[SparseUpdate | Update],
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


def _sparse(update: SparseUpdate | Update) -> SparseVector:
    if isinstance(update, SparseUpdate):
        return update.vector
    try:
        return SparseVector.of_dense(update.vector)
    except AggregationError as error:
        message = f"update {update.key!r}: {error}"
        raise AggregationError(message) from error
