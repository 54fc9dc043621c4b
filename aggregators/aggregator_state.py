"""What one model version leaves to the next, and the file it is kept in."""

import dataclasses
import json
import struct
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from aggregators.errors import AggregationError
from aggregators.registry import memory_of, rules_that, traits_of
from aggregators.rows.rows import Floats, Vector
from aggregators.server_optimizer import (
    OptimizerState,
    ServerOptimizerConfig,
    initial_state,
    optimizer_state,
)

STATE_KEY: Final = "fedagg.aggregator_state"
"""Metadata key of a state's file: all but its vectors, a JSON object."""

_LENGTH: Final = struct.Struct("<Q")
# What reading bytes of any kind can end in, JSON of any shape included.
_MALFORMED: Final = (
    SafetensorError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
_WEIGHTS: Final = "weights"
_CENTER: Final = "center"
_MEMORY: Final = "rule"
_MOMENT_PREFIX: Final = "optimizer."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AggregatorState:
    """What belongs to a model version beside its file, and goes back with it in a rollback.

    Attributes:
        weights: (d,), float64: the model before it is rounded to float32. Steps far smaller than
            the distance between two float32 numbers add up in it.
        optimizer: moments of the server optimizer.
        center: (d,), float32: the aggregate that led to the version; None where the rule does not
            start from it.
        rule: what a rule with memory wants back, of the type that its registry row names; None:
            nothing yet.

    Raises:
        AggregationError: if the weights are not float64 of the optimizer's dimension and finite.
    """

    weights: Floats
    optimizer: OptimizerState
    center: Vector | None = None
    rule: object | None = None

    def __post_init__(self) -> None:
        """Refuse a state that no round could have left."""
        for name, vector, dtype in (
            (_WEIGHTS, self.weights, np.float64),
            (_CENTER, self.center, np.float32),
        ):
            if vector is None:
                continue
            if vector.dtype != dtype or vector.shape != (self.optimizer.dim,):
                message = f"{name} of {vector.dtype}{vector.shape} in an aggregator's state must be"
                message += f" {np.dtype(dtype)} of dim={self.optimizer.dim}"
                raise AggregationError(message)
            if not np.isfinite(vector).all():
                message = f"{name} in an aggregator's state must be finite"
                raise AggregationError(message)

    @property
    def dim(self) -> int:
        """Length of the model's flat vector, d."""
        return self.optimizer.dim


def state_of_model(weights: Vector, config: ServerOptimizerConfig) -> AggregatorState:
    """Make the state of a version that no round led to.

    Args:
        weights: (d,), float32: the model. Not modified.
        config: the optimizer.

    Raises:
        AggregationError: if there are no weights or one is not finite.
    """
    optimizer = initial_state(config, len(weights))
    return AggregatorState(weights=weights.astype(np.float64), optimizer=optimizer)


def under_settings(
    state: AggregatorState, optimizer: ServerOptimizerConfig, rule: str
) -> AggregatorState:
    """Keep of a state what settings, which may have changed meanwhile, have a use for.

    The weights stay whatever changes. Another optimizer starts anew, as does another rule.

    Args:
        state: as the version before left it.
        optimizer: of the coming round.
        rule: the name that `AggregatorConfig.rule` ends in.
    """
    memory = memory_of(rule)
    is_known = memory is not None and isinstance(state.rule, memory)
    kept = state.optimizer
    return replace(
        state,
        optimizer=kept if kept.name == optimizer.name else initial_state(optimizer, state.dim),
        center=state.center if traits_of(rule).starts_from_center else None,
        rule=state.rule if is_known else None,
    )


def encode_state(state: AggregatorState) -> bytes:
    """Write a state as safetensors.

    Returns:
        The file's bytes, the same for the same state.

    Raises:
        AggregationError: if the rule's memory is of no type that a registry row names.

    Guarantees:
        `decode_state` returns the same bits.
    """
    tensors: dict[str, NDArray[np.generic]] = {_WEIGHTS: state.weights}
    if state.center is not None:
        tensors[_CENTER] = state.center
    for name, vector in state.optimizer.vectors.items():
        tensors[_MOMENT_PREFIX + name] = vector
    if state.rule is not None:
        # As a tensor: a header may not be longer than 100 MB, which a million devices would fill.
        tensors[_MEMORY] = np.frombuffer(_written_memory(state.rule), np.uint8)
    about = {"name": state.optimizer.name, "num_steps": state.optimizer.num_steps}
    # One entry of metadata: the library writes several in random order.
    return save(tensors, metadata={STATE_KEY: json.dumps(about, sort_keys=True)})


def decode_state(data: bytes | memoryview) -> AggregatorState:
    """Read a state.

    Raises:
        AggregationError: if `data` is not an encoded state.
    """
    raw = bytes(data)
    try:
        tensors: dict[str, Any] = load(raw)
        (length,) = _LENGTH.unpack_from(raw)
        header = json.loads(raw[_LENGTH.size : _LENGTH.size + length])
        about = json.loads(header["__metadata__"][STATE_KEY])
        weights, center = tensors.pop(_WEIGHTS), tensors.pop(_CENTER, None)
        memory = tensors.pop(_MEMORY, None)
        moments = {name.removeprefix(_MOMENT_PREFIX): each for name, each in tensors.items()}
        name, num_steps = about["name"], about["num_steps"]
        if type(name) is not str or type(num_steps) is not int:
            message = f"the state must name an optimizer and its num_steps, got {about!r:.200}"
            raise AggregationError(message)
        return AggregatorState(
            weights=weights,
            optimizer=optimizer_state(name, len(weights), num_steps, moments),
            center=center,
            rule=None if memory is None else _read_memory(memory.tobytes()),
        )
    except AggregationError:
        raise
    except _MALFORMED as error:
        message = f"data must be an encoded aggregator state: {error}"
        raise AggregationError(message) from error


def _written_memory(memory: object) -> bytes:
    for name in rules_that(lambda traits: bool(traits.memory)):
        kind = memory_of(name)
        if kind is not None and isinstance(memory, kind):
            names = [each.name for each in dataclasses.fields(kind)]
            fields = {each: getattr(memory, each) for each in names}
            return json.dumps({"rule": name, **fields}, sort_keys=True).encode()
    message = f"memory of type {type(memory).__name__} must be what a rule returned"
    raise AggregationError(message)


def _read_memory(text: bytes) -> object:
    tree: dict[str, Any] = json.loads(text)
    name = tree.pop("rule")
    memory = memory_of(name)
    if memory is None:
        message = f"rule {name!r} must be one with memory"
        raise AggregationError(message)
    found: object = memory(**tree)
    return found
