"""The aggregator for hostile rounds: leaves out what cannot be used, and says so."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from aggregators.base import NOTHING_KNOWN, Aggregate, ServerKnowledge
from aggregators.compressed import (
    AnyUpdate,
    CompressedGradientAggregator,
    densified,
    ranks_values,
)
from aggregators.config import AggregatorConfig
from aggregators.engines.engine import LOCAL, Engine
from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.pipeline import make_rule
from aggregators.registry import RULES, rules_that
from aggregators.unusable import Rejection, finite, usable

_ROUNDING: Final = 1e-9  # floor(0.3 * 10) is 2 in floating point


@dataclass(frozen=True, slots=True, kw_only=True)
class ByzantineConfig:
    """How to aggregate when some devices may be malicious.

    Attributes:
        aggregator: the rule and its settings. Its `num_malicious_nodes` counts unless
            `malicious_fraction` is given.
        malicious_fraction: f as a share of the updates, in 0..0.5: f = floor(share * n).
        may_degrade: where too few updates arrived for the rule, use the first of
            `stand_ins` that admits them. False: refuse the round.

    Raises:
        AggregationError: if the fraction is out of range.
    """

    aggregator: AggregatorConfig
    malicious_fraction: float | None = None
    may_degrade: bool = False

    def __post_init__(self) -> None:
        """Refuse a fraction that leaves no honest majority."""
        share = self.malicious_fraction
        if share is not None and not 0.0 <= share < 0.5:
            message = f"malicious_fraction={share} must be at least 0 and below 0.5"
            raise AggregationError(message)

    def num_malicious(self, num_updates: int) -> int:
        """Return f, of so many updates."""
        if self.malicious_fraction is None:
            return self.aggregator.num_malicious_nodes
        return math.floor(self.malicious_fraction * num_updates + _ROUNDING)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RobustAggregate:
    """An aggregate, and what was done to get it.

    Attributes:
        aggregate: of the updates that could be used.
        rejections: updates that could not, each with the reason; by key.
        rule: the rule that was used, with its steps.
        num_malicious_nodes: f it was used with: rejected updates are no longer among the f.
        is_degraded: another rule, or other settings, than configured were used.
    """

    aggregate: Aggregate
    rejections: tuple[Rejection, ...]
    rule: str
    num_malicious_nodes: int
    is_degraded: bool


class ByzantineRobustAggregator:
    """Aggregates what is usable of a round's updates. Safe to share between threads."""

    def __init__(self, config: ByzantineConfig, *, engine: Engine = LOCAL) -> None:
        """Prepare the rule.

        Args:
            config: the rule, and what it may give way to.
            engine: as of `GradientAggregator`.

        Raises:
            AggregationError: if the configuration names no known rule.
        """
        make_rule(config.aggregator)
        self._config = config
        self._engine = engine

    def aggregate(
        self,
        updates: Sequence[AnyUpdate],
        knowledge: ServerKnowledge = NOTHING_KNOWN,
        *,
        dim: int | None = None,
    ) -> RobustAggregate:
        """Leave out unusable updates, then clip and combine the rest.

        Sparse updates are combined as sparse rows; as dense ones by rules that rank values, whose
        settings ask that enough are sent: a device may send fewer entries than it was asked for,
        and that must not end the round.

        Args:
            updates: any updates, in any order. Not modified.
            knowledge: what the rule may know beside them.
            dim: d, what the model expects; None: what most of the updates have.

        Returns:
            The aggregate and what was left out.

        Raises:
            TooFewUpdatesError: if too few usable updates remain.
            AggregationError: if a key repeats, or the rule needs something that is not known.

        Guarantees:
            NaN, infinity, a wrong shape, element type or sample count costs one update, never the
            round; the result is finite.
            Each update left out was one of the f: the rule is asked to tolerate f less.
            Invariant to the order of `updates`, bit for bit.

        Cost: that of the rule; another reading of the updates, and the rule once more, where a
            value is not finite.
        """
        kept, rejections = usable(updates, dim=dim)
        try:
            return self._combine(len(updates), kept, rejections, knowledge)
        except AggregationError:
            # Rows refuse to be read where a value is not finite; only then it is worth a search.
            remaining, broken = finite(kept)
            if not broken:
                raise
        left_out = sorted((*rejections, *broken), key=lambda rejection: rejection.key)
        return self._combine(len(updates), remaining, tuple(left_out), knowledge)

    def _combine(
        self,
        num_updates: int,
        kept: Sequence[AnyUpdate],
        rejections: tuple[Rejection, ...],
        knowledge: ServerKnowledge,
    ) -> RobustAggregate:
        if not kept:
            message = f"no update can be used: {len(rejections)} were rejected"
            raise TooFewUpdatesError(message)
        num_malicious = max(0, self._config.num_malicious(num_updates) - len(rejections))
        config = replace(self._config.aggregator, num_malicious_nodes=num_malicious)
        aggregate, used = self._by_first_that_admits(config, kept, knowledge)
        return RobustAggregate(
            aggregate=aggregate,
            rejections=rejections,
            rule=used.rule,
            num_malicious_nodes=num_malicious,
            is_degraded=used is not config,
        )

    def _by_first_that_admits(
        self, config: AggregatorConfig, updates: Sequence[AnyUpdate], knowledge: ServerKnowledge
    ) -> tuple[Aggregate, AggregatorConfig]:
        try:
            return self._by(config, updates, knowledge), config
        except TooFewUpdatesError:
            if not self._config.may_degrade:
                raise
        for name in stand_ins():
            weaker = replace(config, rule=name, num_to_select=None, trim=None)
            # What another rule remembers is nothing to this one.
            known = replace(knowledge, state=None)
            try:
                return self._by(weaker, updates, known), weaker
            except TooFewUpdatesError:
                continue
        message = f"no rule admits n={len(updates)} updates"
        raise TooFewUpdatesError(message)

    def _by(
        self, config: AggregatorConfig, updates: Sequence[AnyUpdate], knowledge: ServerKnowledge
    ) -> Aggregate:
        if ranks_values(config):
            updates = [densified(update) for update in updates]
        aggregator = CompressedGradientAggregator(config, engine=self._engine)
        return aggregator.aggregate(updates, knowledge)


def stand_ins() -> tuple[str, ...]:
    """Name what a rule may give way to for lack of updates, what needs most of them first."""

    def least(name: str) -> int:
        tolerance = RULES[name].tolerance
        return 0 if tolerance is None else tolerance.least(1)

    return tuple(sorted(rules_that(lambda traits: traits.stands_in), key=least, reverse=True))
