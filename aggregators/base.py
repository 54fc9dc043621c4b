"""The basic aggregator: checks a round's updates, clips them and applies one rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators.config import AggregatorConfig
from aggregators.engines.engine import LOCAL, Engine
from aggregators.errors import AggregationError
from aggregators.pipeline import make_rule
from aggregators.rows.gram import Gram
from aggregators.rows.rows import Floats, Rows, Vector
from aggregators.rule import Context
from privacy.clipping import clip_scale, l2_norm

__all__ = ["Aggregate", "AggregatorConfig", "GradientAggregator", "ServerKnowledge", "Update"]

_NO_OUTPUTS: Final[Mapping[str, Floats]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UpdateFacts:
    """What is known of an update beside its values.

    Attributes:
        key: unique within the round, such as the device or the submission id. Updates are put in
            the order of their keys, so the aggregate does not depend on the order of arrival.
        num_samples: samples the device trained on, as it says; from 1.
        trust: what the server has learned about the device, in 0..1; used by hybrid.
    """

    key: str
    num_samples: int
    trust: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Update(UpdateFacts):
    """What one device sent.

    Attributes:
        vector: (d,), float32: trained weights minus received weights. May be a memory map.
    """

    vector: Vector


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServerKnowledge:
    """What the server knows beside the updates; see `aggregators.rule.Context`.

    Attributes:
        root_update: (d,), float32: an update computed on data of the server's own.
        center: (d,), float32: the aggregate of the round before.
        probe_outputs: by update key, (S, K), float64: what the device's model answers on S probe
            samples.
        seed: decides whatever a rule draws; secret from devices until the deadline has passed.
        state: `Aggregate.state` of the round before.
    """

    root_update: Vector | None = None
    center: Vector | None = None
    probe_outputs: Mapping[str, Floats] = field(default_factory=lambda: _NO_OUTPUTS)
    seed: int = 0
    state: object | None = None


NOTHING_KNOWN: Final = ServerKnowledge()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Aggregate:
    """What a round's updates became. Arrays of length n are in the order of `keys`.

    Attributes:
        vector: (d,), float32: the aggregate, computed in float64 and rounded once.
        keys: the updates' keys, ascending.
        weights: (n,), float64: each update's weight, 0 where it was excluded. They sum to 1 where
            the rule shrinks nothing. For rules that work by coordinate: its weight before values
            are dropped.
        selected: (n,), bool: updates that were not excluded as a whole.
        scores: (n,), float64: what the rule ranked updates by, less is better; None where it
            does not rank them.
        norms: (n,), float64: L2 norms before clipping.
        num_clipped: updates that were shrunk to the clipping norm.
        gram: inner products and squared distances of the clipped updates, where the rule computed
            them.
        state: what a rule with memory wants back in the next round.
    """

    vector: Vector
    keys: tuple[str, ...]
    weights: Floats
    selected: NDArray[np.bool_]
    scores: Floats | None
    norms: Floats
    num_clipped: int
    gram: Gram | None = None
    state: object | None = None


class GradientAggregator:
    """Combines a round's updates with one rule. Holds no state: safe to share between threads."""

    def __init__(self, config: AggregatorConfig, *, engine: Engine = LOCAL) -> None:
        """Prepare the rule.

        Args:
            config: the rule and its settings.
            engine: what computes with the updates. Never changes a result.

        Raises:
            AggregationError: if the configuration names no known rule.
        """
        self._config = config
        self._engine = engine
        self._rule = make_rule(config)

    def aggregate(
        self, updates: Sequence[Update], knowledge: ServerKnowledge = NOTHING_KNOWN
    ) -> Aggregate:
        """Check, order, clip and combine updates.

        Args:
            updates: n updates of one dimension, in any order. Not modified.
            knowledge: what the rule may know beside them.

        Returns:
            The aggregate and each update's part in it.

        Raises:
            TooFewUpdatesError: if the rule needs more updates for the configured f.
            AggregationError: if there are no updates, a key repeats, a sample count is below 1, a
                trust is not in 0..1, the vectors are not finite float32 vectors of one dimension,
                or the rule needs something that is not known.

        Guarantees:
            Invariant to the order of `updates`, bit for bit.

        Cost: that of the rule, plus O(n d) time. Vectors are not copied, clipped or not.
        """
        ordered = sorted(updates, key=lambda update: update.key)
        require_updates(ordered)
        for update in ordered:
            _require_vector(update, ordered[0])
        rows = self._engine.rows([update.vector for update in ordered])
        try:
            return self.aggregate_rows(ordered, rows, knowledge)
        except AggregationError:
            for update in ordered:
                if not np.isfinite(l2_norm(update.vector)):
                    message = f"update {update.key!r} must be finite: it holds NaN or infinity"
                    raise AggregationError(message) from None
            raise

    def aggregate_rows(
        self, updates: Sequence[UpdateFacts], rows: Rows, knowledge: ServerKnowledge
    ) -> Aggregate:
        """Clip and combine rows whose updates are in the order of their keys.

        Raises:
            AggregationError: as `aggregate` does.
        """
        norms = rows.norms()
        scales = self._clip_scales(norms)
        num_clipped = int(np.count_nonzero(scales != 1.0))
        result = self._rule(
            rows.scaled(scales) if num_clipped else rows, self._context(updates, knowledge)
        )
        return Aggregate(
            vector=result.vector,
            keys=tuple(update.key for update in updates),
            weights=result.weights,
            selected=result.selected,
            scores=result.scores,
            norms=norms,
            num_clipped=num_clipped,
            gram=result.gram,
            state=result.state,
        )

    def _context(self, updates: Sequence[UpdateFacts], knowledge: ServerKnowledge) -> Context:
        cap = self._config.max_num_samples
        keys = tuple(update.key for update in updates)
        outputs = None
        if knowledge.probe_outputs:
            missing = [key for key in keys if key not in knowledge.probe_outputs]
            if missing:
                message = f"probe_outputs must hold those of every update: {missing[:5]} missing"
                raise AggregationError(message)
            shapes = {knowledge.probe_outputs[key].shape for key in keys}
            if len(shapes) > 1:
                message = f"probe_outputs must have one shape for all updates, got {sorted(shapes)}"
                raise AggregationError(message)
            outputs = np.stack([knowledge.probe_outputs[key] for key in keys])
        return Context(
            weights=np.array([min(u.num_samples, cap) for u in updates], dtype=np.float64),
            trust=np.array([u.trust for u in updates], dtype=np.float64),
            root_update=knowledge.root_update,
            center=knowledge.center,
            probe_outputs=outputs,
            keys=keys,
            seed=knowledge.seed,
            state=knowledge.state,
        )

    def _clip_scales(self, norms: Floats) -> Floats:
        clip_norm = self._config.clipping_norm
        if clip_norm is None:
            return np.ones(len(norms))
        return np.array([clip_scale(float(norm), clip_norm) for norm in norms])


def require_updates(updates: Sequence[UpdateFacts]) -> None:
    """Refuse updates, sorted by key, whose facts no rule could use.

    Raises:
        AggregationError: if there are none, a key repeats, a sample count is below 1 or a trust is
            not in 0..1.
    """
    if not updates:
        message = "updates must hold at least one update"
        raise AggregationError(message)
    for before, after in pairwise(updates):
        if before.key == after.key:
            message = f"key {after.key!r} must be unique within the round"
            raise AggregationError(message)
    for update in updates:
        if not update.num_samples >= 1:
            message = f"num_samples={update.num_samples} of update {update.key!r} must be at"
            message += " least 1"
            raise AggregationError(message)
        if not 0.0 <= update.trust <= 1.0:
            message = f"trust={update.trust} of update {update.key!r} must be in 0..1"
            raise AggregationError(message)


def _require_vector(update: Update, first: Update) -> None:
    vector = update.vector
    if vector.ndim != 1 or vector.shape[0] == 0:
        message = f"update {update.key!r} of shape {vector.shape} must have shape (d,), d >= 1"
        raise AggregationError(message)
    if vector.dtype != np.float32:
        message = f"update {update.key!r} of type {vector.dtype} must be float32"
        raise AggregationError(message)
    if vector.shape != first.vector.shape:
        message = f"update {update.key!r} of dim={vector.shape[0]} must have the same"
        message += f" dimension as update {first.key!r} of dim={first.vector.shape[0]}"
        raise AggregationError(message)
