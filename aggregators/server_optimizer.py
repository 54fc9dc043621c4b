"""Server optimizers: how the aggregate of a round moves the model.

Devices send differences, trained minus received weights, so an aggregate points where the model
should go: it is the negative of what an optimizer calls a gradient.

    fedavg      McMahan et al. (2017), arXiv:1602.05629    x += eta D
    fedprox     Li et al. (2018), arXiv:1812.06127         the same; devices add mu / 2 |w - x|^2
    fedavgm     Hsu et al. (2019), arXiv:1909.06335        m = b1 m + D; x += eta m
    fedadagrad  Reddi et al. (2020), arXiv:2003.00295      v = v + D^2
    fedadam     the same, Algorithm 2                      v = b2 v + (1 - b2) D^2
    fedyogi     the same                                   v = v - (1 - b2) D^2 sign(v - D^2)
                all three                                  m = b1 m + (1 - b1) D, v starts at tau^2
                                                           x += eta m / (sqrt(v) + tau)
    scaffold    Karimireddy et al. (2020),                 x += eta D; c += |S| / N mean(delta c_i)
                arXiv:1910.06378, Algorithm 1
"""

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from aggregators.errors import AggregationError

Floats: TypeAlias = NDArray[np.float64]
RealVector: TypeAlias = NDArray[np.float32] | NDArray[np.float64]

MOMENTUM: Final = "momentum"
SECOND_MOMENT: Final = "second_moment"
CONTROL: Final = "control"
"""Names of the vectors an `OptimizerState` may hold."""

STATE_KEY: Final = "fedagg.optimizer_state"
"""Metadata key of an encoded state holding all but its vectors, a JSON object."""

_LENGTH: Final = struct.Struct("<Q")


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
        proximal_mu: mu, from 0: weight of the proximal term that devices add to their loss; it
            goes into the plan sent to them. Only fedprox may have one.

    Raises:
        AggregationError: if the name is unknown or a setting is out of range.
    """

    name: str = "fedavg"
    learning_rate: float | None = None
    momentum: float | None = None
    beta2: float = 0.99
    adaptivity: float = 1e-3
    proximal_mu: float = 0.0

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
        if not 0.0 <= self.proximal_mu < math.inf:
            message = f"proximal_mu={self.proximal_mu} of {self.name} must be finite and at least 0"
            raise AggregationError(message)
        if self.proximal_mu != 0.0 and self.name != "fedprox":
            message = f"proximal_mu={self.proximal_mu} of {self.name} must be 0: only fedprox adds"
            message += " a proximal term"
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ControlUpdate:
    """What the devices of a round told scaffold about their control variates.

    Attributes:
        mean_delta: (d,), float32 or float64, finite: mean of delta c_i over the devices.
        num_reporting: |S|, devices in that mean; from 1.
        num_devices: N, devices in the federation; at least `num_reporting`.

    Raises:
        AggregationError: if a number is out of range.
    """

    mean_delta: RealVector
    num_reporting: int
    num_devices: int

    def __post_init__(self) -> None:
        """Refuse more devices in the round than there are."""
        if not 1 <= self.num_reporting <= self.num_devices:
            message = f"num_reporting={self.num_reporting} must satisfy 1 <= num_reporting <="
            message += f" num_devices, got num_devices={self.num_devices}"
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
    starts = {MOMENTUM: 0.0, CONTROL: 0.0, SECOND_MOMENT: config.adaptivity * config.adaptivity}
    names = OPTIMIZERS[config.name].vectors if dim >= 1 else ()
    vectors = {name: np.full(dim, starts[name]) for name in names}
    return _state(config.name, dim, 0, vectors)


def step(
    config: ServerOptimizerConfig,
    state: OptimizerState,
    aggregate: RealVector,
    *,
    control: ControlUpdate | None = None,
) -> tuple[OptimizerState, Floats]:
    """Turn a round's aggregate into what is added to the model.

    Args:
        config: the optimizer; the learning rate and the other numbers may change between rounds.
        state: what the round before returned, or `initial_state`. Not modified.
        aggregate: (d,), float32 or float64, finite: D, the mean of trained minus received weights.
            Not modified.
        control: what scaffold learnt of control variates; None for all others.

    Returns:
        The next state, and the update: (d,), float64, to be added to the weights in float64 and
        rounded once. It shares no memory with the arguments or the state.

    Raises:
        AggregationError: if the state is another optimizer's or of another dimension, the
            aggregate is not a finite vector, `control` is missing or not wanted, or a value leaves
            the range of float64.

    Guarantees:
        Does not modify its arguments.
        The same arguments give the same bits, so that a run continued from a stored state equals
        one that was never interrupted.
        fedavg, fedprox and scaffold with a learning rate of 1 return the aggregate itself.

    Cost: O(d) time and memory.
    References: see the module.
    """
    optimizer = OPTIMIZERS[config.name]
    if state.name != config.name:
        message = f"state of {state.name} must be one of {config.name}"
        raise AggregationError(message)
    delta = _widened("aggregate", aggregate, state)
    if (control is not None) != (CONTROL in optimizer.vectors):
        message = f"control must be given to scaffold and to no other, got {config.name}"
        message += f" and control={'None' if control is None else 'given'}"
        raise AggregationError(message)
    # What overflows is refused below rather than warned about.
    with np.errstate(over="ignore", invalid="ignore"):
        vectors, update = optimizer.advance(config, state.vectors, delta)
        if control is not None:
            share = control.num_reporting / control.num_devices
            mean_delta = _widened("control", control.mean_delta, state)
            vectors = {CONTROL: state.vectors[CONTROL] + share * mean_delta}
    if not np.isfinite(update).all():
        message = f"update of {config.name} must be finite: learning_rate={config.eta} or the"
        message += " aggregate is too large"
        raise AggregationError(message)
    return _state(config.name, state.dim, state.num_steps + 1, vectors), update


def encode_state(state: OptimizerState) -> bytes:
    """Encode a state as safetensors.

    Returns:
        The file's bytes, the same for the same state.

    Guarantees:
        `decode_state` returns the same bits.
    """
    about = {"name": state.name, "dim": state.dim, "num_steps": state.num_steps}
    # One entry: the library writes several in random order.
    return save(dict(state.vectors), metadata={STATE_KEY: json.dumps(about, sort_keys=True)})


def decode_state(data: bytes | memoryview) -> OptimizerState:
    """Decode a state from safetensors.

    Raises:
        AggregationError: if `data` is not an encoded state.
    """
    raw = bytes(data)
    try:
        vectors: dict[str, Floats] = load(raw)
        (length,) = _LENGTH.unpack_from(raw)
        header = json.loads(raw[_LENGTH.size : _LENGTH.size + length])
        about = json.loads(header["__metadata__"][STATE_KEY])
        name, dim, num_steps = about["name"], about["dim"], about["num_steps"]
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        message = f"data must be an encoded optimizer state: {error}"
        raise AggregationError(message) from error
    if type(name) is not str or type(dim) is not int or type(num_steps) is not int:
        message = f"data must name an optimizer, its dim and num_steps, got {about!r:.200}"
        raise AggregationError(message)
    return _state(name, dim, num_steps, vectors)


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
        "fedprox": Optimizer(advance=_follow),
        "scaffold": Optimizer(advance=_follow, vectors=(CONTROL,)),
    }
)
"""Server optimizers by name."""


def _state(name: str, dim: int, num_steps: int, vectors: Vectors) -> OptimizerState:
    """Make a state of vectors nobody else holds."""
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
