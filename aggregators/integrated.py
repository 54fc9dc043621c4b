"""The whole way from updates to a step of the model: validate, clip, pre-aggregate, rule, step."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from aggregators.base import NOTHING_KNOWN, ServerKnowledge, Update
from aggregators.byzantine import ByzantineConfig, ByzantineRobustAggregator, RobustAggregate
from aggregators.errors import AggregationError
from aggregators.server_optimizer import (
    ControlUpdate,
    OptimizerState,
    ServerOptimizerConfig,
    initial_state,
    step,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegratedConfig:
    """The settings of each stage.

    Attributes:
        byzantine: what is rejected, clipped, pre-aggregated and combined, and how.
        optimizer: what the aggregate does to the model.
    """

    byzantine: ByzantineConfig
    optimizer: ServerOptimizerConfig = field(default_factory=ServerOptimizerConfig)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IntegratedState:
    """What one round leaves to the next.

    Attributes:
        optimizer: moments of the server optimizer.
        center: (d,), float32: the last aggregate, where centered-clipping starts.
        rule: what a rule with memory returned.
    """

    optimizer: OptimizerState
    center: NDArray[np.float32] | None = None
    rule: object | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IntegratedResult:
    """What a round did.

    Attributes:
        step: (d,), float64: what to add to the model's weights.
        state: for the next round.
        robust: the aggregate and what was left out of it.
    """

    step: NDArray[np.float64]
    state: IntegratedState
    robust: RobustAggregate


class IntegratedFederatedAggregator:
    """Runs a round's updates through every stage. State goes through, not in."""

    def __init__(self, config: IntegratedConfig) -> None:
        """Prepare the stages.

        Raises:
            AggregationError: if the configuration names no known rule.
        """
        self._config = config
        self._aggregator = ByzantineRobustAggregator(config.byzantine)

    def initial_state(self, dim: int) -> IntegratedState:
        """Make the state of the first round of a model with `dim` weights.

        Raises:
            AggregationError: if `dim` is below 1.
        """
        return IntegratedState(optimizer=initial_state(self._config.optimizer, dim))

    def aggregate(
        self,
        updates: Sequence[Update],
        state: IntegratedState,
        knowledge: ServerKnowledge = NOTHING_KNOWN,
        *,
        control: ControlUpdate | None = None,
    ) -> IntegratedResult:
        """Validate, clip, pre-aggregate and combine updates; let the optimizer make a step of it.

        Args:
            updates: any updates, in any order. Not modified.
            state: of the round before, or `initial_state`. Not modified.
            knowledge: what the rule may know; its centre and state are those of `state`.
            control: the devices' control variates, for scaffold.

        Returns:
            The step and the next state.

        Raises:
            TooFewUpdatesError: if too few usable updates remain.
            AggregationError: if a key repeats, or a stage lacks something it needs.

        Guarantees:
            Invariant to the order of `updates`, bit for bit.
            The same updates and state give the same result: a round may be run again.
        """
        if knowledge.center is not None or knowledge.state is not None:
            message = "knowledge must not hold a center or a state: they come from the last round"
            raise AggregationError(message)
        known = ServerKnowledge(
            root_update=knowledge.root_update,
            center=state.center,
            probe_outputs=knowledge.probe_outputs,
            seed=knowledge.seed,
            state=state.rule,
        )
        robust = self._aggregator.aggregate(updates, known, dim=state.optimizer.dim)
        vector = robust.aggregate.vector
        moments, change = step(self._config.optimizer, state.optimizer, vector, control=control)
        return IntegratedResult(
            step=change,
            state=IntegratedState(optimizer=moments, center=vector, rule=robust.aggregate.state),
            robust=robust,
        )
