"""Server optimizers: how the aggregate of a round moves the model.

Devices send differences, trained minus received weights, so an aggregate points where the model
should go: it is the negative of what an optimizer calls a gradient.

    fedavg      McMahan et al. (2017), arXiv:1602.05629    x += eta D
    fedavgm     Hsu et al. (2019), arXiv:1909.06335        m = b1 m + D; x += eta m
    fedadagrad  Reddi et al. (2020), arXiv:2003.00295      v = v + D^2
    fedadam     the same, Algorithm 2                      v = b2 v + (1 - b2) D^2
    fedyogi     the same                                   v = v - (1 - b2) D^2 sign(v - D^2)
                all three                                  m = b1 m + (1 - b1) D, v starts at tau^2
                                                           x += eta m / (sqrt(v) + tau)
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aggregators.errors import AggregationError

Floats: TypeAlias = NDArray[np.float64]
RealVector: TypeAlias = NDArray[np.float32] | NDArray[np.float64]

MOMENTUM: Final = "momentum"
SECOND_MOMENT: Final = "second_moment"
"""Names of the vectors an `OptimizerState` may hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptimizerConfig:
    """Which optimizer, and its settings. An optimizer ignores the settings it has no use for.

    Attributes:
        name: a key of `OPTIMIZERS`.
        learning_rate: eta, above 0. None: 1 for those that follow the aggregate, so that the
            model takes it as it is, and 0.01 for fedadagrad, fedadam and fedyogi, which move
            every weight by about that much a round, however small the aggregate.
        momentum: beta_1, in [0, 1). None: 0.9, but 0 for fedadagrad, as in the experiments of
            its paper.
        beta2: decay of the second moment of fedadam and fedyogi, in [0, 1).
        adaptivity: tau, above 0: aggregates well below it are followed in proportion, those well
            above it only by sign. In units of the aggregate.

    Raises:
        AggregationError: if the name is unknown or a setting is out of range.
    """

    name: str = "fedavg"
    learning_rate: float | None = None
    momentum: float | None = None
    beta2: float = 0.99
    adaptivity: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse settings no optimizer could work with."""
        if self.name not in OPTIMIZERS:
            message = f"name={self.name!r} must be one of {', '.join(OPTIMIZERS)}"
            raise AggregationError(message)
        for field, rate in (("learning_rate", self.eta), ("adaptivity", self.adaptivity)):
            if not 0.0 < rate < math.inf:
                message = f"{field}={rate} of {self.name} must be finite and above 0"
                raise AggregationError(message)
        for field, decay in (("momentum", self.beta1), ("beta2", self.beta2)):
            if not 0.0 <= decay < 1.0:
                message = f"{field}={decay} of {self.name} must satisfy 0 <= {field} < 1"
                raise AggregationError(message)

    @property
    def eta(self) -> float:
        """Learning rate, the optimizer's own where none is set."""
        if self.learning_rate is None:
            return OPTIMIZERS[self.name].learning_rate
        return self.learning_rate

    @property
    def beta1(self) -> float:
        """Momentum, the optimizer's own where none is set."""
        return OPTIMIZERS[self.name].momentum if self.momentum is None else self.momentum


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OptimizerState:
    """What an optimizer remembers from one round to the next.

    Attributes:
        name: the optimizer it belongs to.
        dim: d, from 1.
        num_steps: rounds taken, from 0.
        vectors: (d,), float64, finite, one for each name the optimizer keeps. Not to be modified;
            those made here are read-only.

    Raises:
        AggregationError: if any of that does not hold.
    """

    name: str
    dim: int
    num_steps: int
    vectors: Mapping[str, Floats]

    def __post_init__(self) -> None:
        """Refuse a state that no round could have left."""
        if self.name not in OPTIMIZERS:
            message = f"name={self.name!r} of the state must be one of {', '.join(OPTIMIZERS)}"
            raise AggregationError(message)
        if self.dim < 1 or self.num_steps < 0:
            message = f"dim={self.dim} of the state of {self.name} must be at least 1, and"
            message += f" num_steps={self.num_steps} at least 0"
            raise AggregationError(message)
        names = OPTIMIZERS[self.name].vectors
        if set(self.vectors) != set(names):
            message = f"vectors {sorted(self.vectors)} of the state of {self.name} must be"
            message += f" {sorted(names)}"
            raise AggregationError(message)
        for name, vector in self.vectors.items():
            if vector.dtype != np.float64 or vector.shape != (self.dim,):
                message = f"vector {name!r} of {vector.dtype}{vector.shape} in the state of"
                message += f" {self.name} must be float64 of dim={self.dim}"
                raise AggregationError(message)
            least = 0.0 if name == SECOND_MOMENT else -math.inf
            if not np.isfinite(vector).all() or bool((vector < least).any()):
                message = f"vector {name!r} in the state of {self.name} must be finite"
                message += ", and not negative where it is a second moment"
                raise AggregationError(message)


def initial_state(config: ServerOptimizerConfig, dim: int) -> OptimizerState:
    """Make the state before the first round.

    Args:
        config: the optimizer.
        dim: d, length of the model's flat vector; from 1.

    Returns:
        Zeros, but tau^2 for second moments: Algorithm 2 of Reddi et al. starts at or above it, so
        that a first aggregate close to zero is not blown up.

    Raises:
        AggregationError: if `dim` is below 1.
    """
    starts = {MOMENTUM: 0.0, SECOND_MOMENT: config.adaptivity * config.adaptivity}
    names = OPTIMIZERS[config.name].vectors if dim >= 1 else ()
    vectors = {name: np.full(dim, starts[name]) for name in names}
    return optimizer_state(config.name, dim, 0, vectors)


def step(
    config: ServerOptimizerConfig,
    state: OptimizerState,
    aggregate: RealVector,
) -> tuple[OptimizerState, Floats]:
    """Turn a round's aggregate into what is added to the model.

    Args:
        config: the optimizer; the learning rate and the other numbers may change between rounds.
        state: what the round before returned, or `initial_state`. Not modified.
        aggregate: (d,), float32 or float64, finite: D, the mean of trained minus received weights.
            Not modified.

    Returns:
        The next state, and the update: (d,), float64, to be added to the weights in float64 and
        rounded once. It shares no memory with the arguments or the state.

    Raises:
        AggregationError: if the state is another optimizer's or of another dimension, the
            aggregate is not a finite vector, or a value leaves the range of float64.

    Guarantees:
        Does not modify its arguments.
        The same arguments give the same bits, so that a run continued from a stored state equals
        one that was never interrupted.
        fedavg with a learning rate of 1 returns the aggregate itself.

    Cost: O(d) time and memory.
    References: see the module.
    """
    optimizer = OPTIMIZERS[config.name]
    if state.name != config.name:
        message = f"state of {state.name} must be one of {config.name}"
        raise AggregationError(message)
    delta = _widened("aggregate", aggregate, state)
    # What overflows is refused below rather than warned about.
    with np.errstate(over="ignore", invalid="ignore"):
        vectors, update = optimizer.advance(config, state.vectors, delta)
    if not np.isfinite(update).all():
        message = f"update of {config.name} must be finite: learning_rate={config.eta} or the"
        message += " aggregate is too large"
        raise AggregationError(message)
    return optimizer_state(config.name, state.dim, state.num_steps + 1, vectors), update


Vectors: TypeAlias = Mapping[str, Floats]
Advance: TypeAlias = Callable[[ServerOptimizerConfig, Vectors, Floats], tuple[Vectors, Floats]]
"""From the vectors of the state and D to the next vectors and the update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """One entry of `OPTIMIZERS`: its step, what it remembers, and its default settings."""

    advance: Advance
    vectors: tuple[str, ...] = ()
    learning_rate: float = 1.0
    momentum: float = 0.9


def _follow(
    config: ServerOptimizerConfig, vectors: Vectors, delta: Floats
) -> tuple[Vectors, Floats]:
    return vectors, config.eta * delta


def _follow_with_momentum(
    config: ServerOptimizerConfig, vectors: Vectors, delta: Floats
) -> tuple[Vectors, Floats]:
    momentum = config.beta1 * vectors[MOMENTUM] + delta
    return {MOMENTUM: momentum}, config.eta * momentum


def _adapt(
    second_moment: Callable[[ServerOptimizerConfig, Floats, Floats], Floats],
) -> Advance:
    """Make a step of Algorithm 2 of a rule from v and D^2 to the next v."""

    def advance(
        config: ServerOptimizerConfig, vectors: Vectors, delta: Floats
    ) -> tuple[Vectors, Floats]:
        momentum = config.beta1 * vectors[MOMENTUM] + (1.0 - config.beta1) * delta
        moment = second_moment(config, vectors[SECOND_MOMENT], np.square(delta))
        update = config.eta * momentum / (np.sqrt(moment) + config.adaptivity)
        return {MOMENTUM: momentum, SECOND_MOMENT: moment}, update

    return advance


def _adagrad(_: ServerOptimizerConfig, moment: Floats, square: Floats) -> Floats:
    return moment + square


def _adam(config: ServerOptimizerConfig, moment: Floats, square: Floats) -> Floats:
    return config.beta2 * moment + (1.0 - config.beta2) * square


def _yogi(config: ServerOptimizerConfig, moment: Floats, square: Floats) -> Floats:
    return moment - (1.0 - config.beta2) * square * np.sign(moment - square)


_MOMENTS: Final = (MOMENTUM, SECOND_MOMENT)

OPTIMIZERS: Final[Mapping[str, Optimizer]] = MappingProxyType(
    {
        "fedavg": Optimizer(advance=_follow),
        "fedavgm": Optimizer(advance=_follow_with_momentum, vectors=(MOMENTUM,)),
        "fedadam": Optimizer(advance=_adapt(_adam), vectors=_MOMENTS, learning_rate=0.01),
        "fedyogi": Optimizer(advance=_adapt(_yogi), vectors=_MOMENTS, learning_rate=0.01),
        "fedadagrad": Optimizer(
            advance=_adapt(_adagrad), vectors=_MOMENTS, learning_rate=0.01, momentum=0.0
        ),
    }
)
"""Server optimizers by name."""


def optimizer_state(name: str, dim: int, num_steps: int, vectors: Vectors) -> OptimizerState:
    """Make a state of vectors nobody else holds.

    Raises:
        AggregationError: as `OptimizerState` does.
    """
    state = OptimizerState(
        name=name, dim=dim, num_steps=num_steps, vectors=MappingProxyType(dict(vectors))
    )
    for vector in state.vectors.values():
        vector.setflags(write=False)
    return state


def _widened(argument: str, vector: RealVector, state: OptimizerState) -> Floats:
    """Check a vector against the state and widen it to float64."""
    if vector.shape != (state.dim,) or vector.dtype not in (np.float32, np.float64):
        message = f"{argument} of {vector.dtype}{vector.shape} must be float32 or float64 of"
        message += f" dim={state.dim}, that of the state of {state.name}"
        raise AggregationError(message)
    if not np.isfinite(vector).all():
        message = f"{argument} of {state.name} must be finite: it holds NaN or infinity"
        raise AggregationError(message)
    return vector.astype(np.float64, copy=False)
