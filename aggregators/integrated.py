"""The one step from a round's contributions to the next version of the model, in every mode.

    combine     what the round's mode makes of its contributions: a robust rule on updates, a noised
                sum of clipped ones, or the sums that share holders opened
    expand      undo the round's linear map, once, on the aggregate
    optimize    what the server optimizer makes of the aggregate
    move        add that to the weights in float64; round to float32 once

Plain, private and shared rounds differ in the first line alone.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, TypeAlias, assert_never

import numpy as np
from numpy.typing import NDArray

from aggregators.aggregator_state import AggregatorState, state_of_model, under_settings
from aggregators.base import NOTHING_KNOWN, ServerKnowledge, Update
from aggregators.byzantine import ByzantineConfig, ByzantineRobustAggregator, RobustAggregate
from aggregators.compressed import AnyUpdate
from aggregators.dp import DPConfig, DPGradientAggregator, PrivateAggregate, RoundNoise
from aggregators.engines.engine import LOCAL, Engine
from aggregators.errors import AggregationError
from aggregators.registry import traits_of
from aggregators.rows.rows import Floats, Vector
from aggregators.secure import from_units
from aggregators.server_optimizer import ServerOptimizerConfig, step
from updates.coordinate_maps import LinearMap

_NO_FLAGS: Final[Mapping[str, bool]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegratedConfig:
    """The settings of each stage.

    Attributes:
        byzantine: what is rejected, clipped, pre-aggregated and combined, and how; of updates, and
            of the means of groups that a shared round opened.
        optimizer: what the aggregate does to the model.
    """

    byzantine: ByzantineConfig
    optimizer: ServerOptimizerConfig = field(default_factory=ServerOptimizerConfig)

    @property
    def rule(self) -> str:
        """Name of the rule itself, without the steps before it."""
        return self.byzantine.aggregator.rule.rpartition("+")[2]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlainUpdates:
    """The updates of a round whose coordinator sees them.

    Attributes:
        updates: in any order.
        knowledge: what the rule may know; its centre and state are those of the version before.
        linear_map: that all of them went through; None: none, or each chose its coordinates.
    """

    updates: Sequence[AnyUpdate]
    knowledge: ServerKnowledge = NOTHING_KNOWN
    linear_map: LinearMap | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrivateUpdates:
    """The updates of a round to whose sum the coordinator adds noise.

    Attributes:
        updates: in any order.
        config: bounds, rule and noise of the round.
        noise: what decides the noise. Secret.
        within_norm: by key, what a device says of its update before it clipped it.
        linear_map: as of `PlainUpdates`.
    """

    updates: Sequence[AnyUpdate]
    config: DPConfig
    noise: RoundNoise = field(repr=False)
    within_norm: Mapping[str, bool] = field(default_factory=lambda: _NO_FLAGS)
    linear_map: LinearMap | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SharedSums:
    """What the share holders of a round opened: one sum, or the sums of random groups.

    Attributes:
        sums: each (k,), int64, in units of 2^-fraction_bits; at least one.
        divisors: what makes a mean of each: the weights of its updates, or, where noise is in it, a
            number fixed in advance.
        fraction_bits: of the units.
        linear_map: as of `PlainUpdates`.
    """

    sums: Sequence[NDArray[np.int64]]
    divisors: Sequence[float]
    fraction_bits: int
    linear_map: LinearMap | None = None


Contributions: TypeAlias = PlainUpdates | PrivateUpdates | SharedSums


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenedMeans:
    """What became of a shared round's sums.

    Attributes:
        vector: (k,), float64: the mean, or the aggregate of the groups' means.
        num_groups: sums that were opened.
        robust: of the groups' means; None: there was one.
    """

    vector: Floats
    num_groups: int
    robust: RobustAggregate | None = None

    @property
    def num_excluded(self) -> int:
        """Groups that got no weight."""
        return 0 if self.robust is None else int(np.sum(self.robust.aggregate.weights == 0))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepReport:
    """What a step did.

    Attributes:
        combined: what the round's mode made of its contributions.
        aggregate: (d,), float32 or float64: of it, expanded: what the server optimizer took.
    """

    combined: RobustAggregate | PrivateAggregate | OpenedMeans
    aggregate: NDArray[np.floating]

    @property
    def update_norm(self) -> float:
        """L2 norm of the aggregate."""
        return float(np.linalg.norm(self.aggregate.astype(np.float64, copy=False)))


class IntegratedFederatedAggregator:
    """Makes the next version of a model. State goes through, not in: safe to share."""

    def __init__(self, config: IntegratedConfig, *, engine: Engine = LOCAL) -> None:
        """Prepare the stages.

        Args:
            config: of each stage.
            engine: what computes with the updates. Never changes a result.

        Raises:
            AggregationError: if the configuration names no known rule.
        """
        self._config = config
        self._engine = engine
        self._robust = ByzantineRobustAggregator(config.byzantine, engine=engine)

    def initial_state(self, weights: Vector) -> AggregatorState:
        """Make the state of a version that no round led to.

        Args:
            weights: (d,), float32: the model. Not modified.

        Raises:
            AggregationError: if there are no weights or one is not finite.
        """
        return state_of_model(weights, self._config.optimizer)

    def step(
        self, state: AggregatorState, contributions: Contributions
    ) -> tuple[AggregatorState, Vector, StepReport]:
        """Combine what a round collected, and move the model by it.

        Args:
            state: of the version that the contributions started from; what other settings left in
                it is dropped, but for the weights. Not modified.
            contributions: of the round. Not modified.

        Returns:
            The state of the next version; its weights, (d,), float32, those of the state rounded
            once, infinite where they left float32's range; and what was done.

        Raises:
            TooFewUpdatesError: if the rule needs more updates for the configured f.
            AggregationError: if a stage cannot work with its input, or the result leaves the range
                of float64.
            CompressionError: if the aggregate is none of what the linear map gives.
            PrivacyError: if the noise or the sum is out of range.

        Guarantees:
            Invariant to the order of the contributions, bit for bit.
            The same state and contributions give the same result, on every machine: a round may be
            run again, by whoever takes it over.
            Steps of any size add up: weights are rounded for those who read them, not for the next
            step.

        Cost: that of the rule; O(d) beside it.
        """
        config = self._config
        before = under_settings(state, config.optimizer, config.rule)
        combined = self._combine(before, contributions)
        vector: NDArray[np.floating] = _vector_of(combined)
        if contributions.linear_map is not None:
            mapped: Floats = vector.astype(np.float64, copy=False)
            expanded: Floats = contributions.linear_map.expand(mapped)
            vector = expanded
        if vector.shape != (before.dim,):
            message = f"the aggregate has shape {vector.shape}, the model has {before.dim} elements"
            raise AggregationError(message)
        moments, change = step(config.optimizer, before.optimizer, vector)
        after = AggregatorState(
            weights=before.weights + change,
            optimizer=moments,
            center=_rounded(vector) if self._keeps_center(contributions) else before.center,
            rule=_memory_of(combined) or before.rule,
        )
        report = StepReport(combined=combined, aggregate=vector)
        return after, _rounded(after.weights), report

    def _combine(
        self, state: AggregatorState, contributions: Contributions
    ) -> RobustAggregate | PrivateAggregate | OpenedMeans:
        match contributions:
            case PlainUpdates():
                return self._robust.aggregate(
                    contributions.updates,
                    _known(contributions, state),
                    dim=_combined_dim(contributions, state),
                )
            case PrivateUpdates():
                private = DPGradientAggregator(contributions.config, engine=self._engine)
                return private.aggregate(
                    contributions.updates, contributions.noise, contributions.within_norm
                )
            case SharedSums():
                return self._open(contributions)
            case _:
                assert_never(contributions)

    def _open(self, shared: SharedSums) -> OpenedMeans:
        """Take one mean as it is; of several, let the rule see them as rows.

        Groups are drawn anew in each round: what a rule remembers of one says nothing of the next.
        """
        means = [
            from_units(total, fraction_bits=shared.fraction_bits, divisor=divisor)
            for total, divisor in zip(shared.sums, shared.divisors, strict=True)
        ]
        if not means:
            message = "sums must hold at least one sum"
            raise AggregationError(message)
        if len(means) == 1:
            return OpenedMeans(vector=means[0], num_groups=1)
        rows = [
            Update(key=f"group-{index:05d}", vector=_rounded(mean), num_samples=int(divisor))
            for index, (mean, divisor) in enumerate(zip(means, shared.divisors, strict=True))
        ]
        # What a rule draws must not be known before the sums are.
        digest = hashlib.sha256(b"".join(mean.tobytes() for mean in means)).digest()
        knowledge = ServerKnowledge(seed=int.from_bytes(digest[:8], "big"))
        robust = self._robust.aggregate(rows, knowledge, dim=len(means[0]))
        vector = robust.aggregate.vector.astype(np.float64)
        robust = replace(robust, aggregate=replace(robust.aggregate, state=None))
        return OpenedMeans(vector=vector, num_groups=len(means), robust=robust)

    def _keeps_center(self, contributions: Contributions) -> bool:
        starts_from_it = traits_of(self._config.rule).starts_from_center
        return starts_from_it and isinstance(contributions, PlainUpdates)


def _known(plain: PlainUpdates, state: AggregatorState) -> ServerKnowledge:
    """Return what the rule may know: the centre as the round's map shows it, and its own memory."""
    if plain.knowledge.center is not None or plain.knowledge.state is not None:
        message = "knowledge must not hold a center or a state: they come from the version before"
        raise AggregationError(message)
    center = state.center
    if center is not None and plain.linear_map is not None:
        center = plain.linear_map.compress(center)
    return replace(plain.knowledge, center=center, state=state.rule)


def _combined_dim(plain: PlainUpdates, state: AggregatorState) -> int:
    return state.dim if plain.linear_map is None else plain.linear_map.num_values


def _vector_of(combined: RobustAggregate | PrivateAggregate | OpenedMeans) -> NDArray[np.floating]:
    return combined.aggregate.vector if isinstance(combined, RobustAggregate) else combined.vector


def _memory_of(combined: RobustAggregate | PrivateAggregate | OpenedMeans) -> object | None:
    return combined.aggregate.state if isinstance(combined, RobustAggregate) else None


def _rounded(vector: NDArray[np.floating]) -> Vector:
    with np.errstate(over="ignore"):  # whoever takes the result checks that it is finite
        return vector.astype(np.float32)
