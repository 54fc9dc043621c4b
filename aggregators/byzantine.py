"""The aggregator for hostile rounds: leaves out what cannot be used, and says so."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from aggregators.base import (
    NOTHING_KNOWN,
    Aggregate,
    GradientAggregator,
    ServerKnowledge,
    Update,
)
from aggregators.config import AggregatorConfig
from aggregators.dense_rows import as_rows
from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.registry import RULES, make_rule, rules_that
from aggregators.rows import Rows
from aggregators.unusable import Rejection, usable

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

    def __init__(self, config: ByzantineConfig) -> None:
        """Prepare the rule.

        Raises:
            AggregationError: if the configuration names no known rule.
        """
        make_rule(config.aggregator)
        self._config = config

    def aggregate(
        self,
        updates: Sequence[Update],
        knowledge: ServerKnowledge = NOTHING_KNOWN,
        *,
        dim: int | None = None,
    ) -> RobustAggregate:
        """Leave out unusable updates, then clip and combine the rest.

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

        Cost: that of the rule, plus two readings of the updates.
        """
        kept, rejections = usable(updates, dim=dim)
        if not kept:
            message = f"no update can be used: {len(rejections)} were rejected"
            raise TooFewUpdatesError(message)
        assumed = self._num_malicious(len(updates))
        num_malicious = max(0, assumed - len(rejections))
        config = replace(self._config.aggregator, num_malicious_nodes=num_malicious)
        rows = as_rows([update.vector for update in kept])
        aggregate, used = self._combine(config, kept, rows, knowledge)
        return RobustAggregate(
            aggregate=aggregate,
            rejections=rejections,
            rule=used.rule,
            num_malicious_nodes=num_malicious,
            is_degraded=used is not config,
        )

    def _num_malicious(self, num_updates: int) -> int:
        share = self._config.malicious_fraction
        if share is None:
            return self._config.aggregator.num_malicious_nodes
        return math.floor(share * num_updates + _ROUNDING)

    def _combine(
        self,
        config: AggregatorConfig,
        updates: Sequence[Update],
        rows: Rows,
        knowledge: ServerKnowledge,
    ) -> tuple[Aggregate, AggregatorConfig]:
        try:
            return GradientAggregator(config).aggregate_rows(updates, rows, knowledge), config
        except TooFewUpdatesError:
            if not self._config.may_degrade:
                raise
        for name in stand_ins():
            weaker = replace(config, rule=name, num_to_select=None, trim=None)
            try:
                return GradientAggregator(weaker).aggregate_rows(updates, rows, knowledge), weaker
            except TooFewUpdatesError:
                continue
        message = f"no rule admits n={len(updates)} updates"
        raise TooFewUpdatesError(message)


def stand_ins() -> tuple[str, ...]:
    """Name what a rule may give way to for lack of updates, what needs most of them first."""

    def least(name: str) -> int:
        tolerance = RULES[name].tolerance
        return 0 if tolerance is None else tolerance.least(1)

    return tuple(sorted(rules_that(lambda traits: traits.stands_in), key=least, reverse=True))
