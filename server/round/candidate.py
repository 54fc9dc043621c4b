"""From the contributions of a round to the model it proposes: pure computation, one road.

Runs in a kernel thread. The same base version and contributions give the same bytes, in whatever
order they came and on whatever machine: a coordinator that takes over builds the same candidate,
and so does whoever replays the round.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aggregators.aggregator_state import AggregatorState, decode_state, encode_state
from aggregators.engines.engine import LOCAL, Engine
from aggregators.errors import AggregationError
from aggregators.integrated import (
    Contributions,
    IntegratedConfig,
    IntegratedFederatedAggregator,
    StepReport,
)
from updates.errors import ModelError
from updates.vectors import (
    ModelLayout,
    decode_model,
    encode_model,
    flatten,
    layout_of,
    unflatten,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationSettings:
    """How a round's updates become a change of the model."""

    aggregator: IntegratedConfig
    engine: Engine = LOCAL  # computes with dense updates; changes no result


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseVersion:
    """The files of the version that a round trains from.

    Attributes:
        model: safetensors file.
        state: the aggregator's state; None: no round led to this version.
    """

    model: bytes
    state: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFacts:
    """What may be told of a round's making, and what of it is kept secret.

    Attributes:
        excluded: devices whose update got no weight.
        metrics: of the aggregation.
        liars: share holders whose share of the sums was wrong.
        next_clipping_norm: C of the rounds after; None: as before.
        noise: what the coordinator added, in units of the grid; None: nothing. Whoever has it can
            subtract it.
    """

    excluded: tuple[str, ...]
    metrics: Mapping[str, float]
    liars: tuple[int, ...] = ()
    next_clipping_norm: float | None = None
    noise: NDArray[np.int64] | None = field(default=None, repr=False)


class RoundSource(Protocol):
    """A round's mode: what it contributes to the step, and what may be told of it."""

    def contributions(self, layout: ModelLayout) -> Contributions:
        """Decode what came in, for a model of this layout.

        Raises:
            AggregationError, CodecError, CompressionError, PrivacyError: if it cannot be combined.
        """
        ...

    def facts(self, report: StepReport) -> RoundFacts:
        """Say what became of it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltModel:
    """A candidate: its file, the state that belongs to it, and what is worth knowing."""

    data: bytes
    state: bytes
    facts: RoundFacts

    @property
    def sha256(self) -> str:
        """Of the model's file."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def state_sha256(self) -> str:
        """Of the state's file."""
        return hashlib.sha256(self.state).hexdigest()


def build_candidate(
    base: BaseVersion, source: RoundSource, settings: AggregationSettings
) -> BuiltModel:
    """Take one step from the base version by what the round collected.

    Args:
        base: files of the base version.
        source: the round.
        settings: rule, server optimizer and engine.

    Returns:
        The candidate. Computed in float64; the model's file is rounded to float32 once.

    Raises:
        AggregationError: if the rule does not admit these contributions, a payload or the state is
            damaged, or the state is another version's.
        CodecError: if a payload does not decode.
        ModelError: if the base is no model.
        PrivacyError: if a setting of a private round is out of range.
    """
    tensors, metadata = decode_model(base.model)
    layout = layout_of(tensors)
    try:
        aggregator = IntegratedFederatedAggregator(settings.aggregator, engine=settings.engine)
        before = _state_of(base, flatten(tensors, layout), aggregator)
        after, weights, report = aggregator.step(before, source.contributions(layout))
        return BuiltModel(
            data=encode_model(unflatten(weights, layout), metadata),
            state=encode_state(after),
            facts=source.facts(report),
        )
    except (ValueError, ArithmeticError, MemoryError):
        raise
    except Exception as error:  # bytes and engines of any kind may fail: it costs the round
        msg = f"{type(error).__name__}: {error}"
        raise AggregationError(msg) from error


def _state_of(
    base: BaseVersion, weights: NDArray[np.float32], aggregator: IntegratedFederatedAggregator
) -> AggregatorState:
    if base.state is None:
        return aggregator.initial_state(weights)
    return _own_state(base.state, weights)


def _own_state(data: bytes, weights: NDArray[np.float32]) -> AggregatorState:
    state = decode_state(data)
    with np.errstate(over="ignore"):
        is_its_own = np.array_equal(state.weights.astype(np.float32), weights)
    if not is_its_own:
        msg = "the aggregator's state must be that of the model: its weights are others"
        raise AggregationError(msg)
    return state


def require_state(base: BaseVersion) -> None:
    """Check that a version's files belong together.

    Raises:
        AggregationError: if the state does not decode, or its weights are not the model's.
        ModelError: if the model does not.
    """
    tensors, _ = decode_model(base.model)
    if base.state is not None:
        _own_state(base.state, flatten(tensors, layout_of(tensors)))


def candidate_problem(
    candidate: BaseVersion, base: bytes, *, max_update_norm: float | None
) -> str | None:
    """Say why a candidate must not be published; None: nothing is wrong with it.

    Checks that the file decodes with the base's tensors, that every value is finite, that the
    state is that of the model, and that the change from the base is no longer than
    `max_update_norm` (L2, float64).
    """
    try:
        new, _ = decode_model(candidate.model)
        old, _ = decode_model(base)
    except ModelError as error:
        return f"the candidate does not decode: {error}"
    if layout_of(new) != layout_of(old):
        return "the candidate's tensors are not those of its base version"
    after, before = flatten(new, layout_of(new)), flatten(old, layout_of(old))
    if not np.isfinite(after).all():
        return "the candidate holds NaN or infinity"
    try:
        if candidate.state is not None:
            _own_state(candidate.state, after)
    except AggregationError as error:
        return f"the candidate's state is none: {error}"
    norm = float(np.linalg.norm(after.astype(np.float64) - before))
    if max_update_norm is not None and norm > max_update_norm:
        return f"update norm {norm:g} exceeds max-update-norm={max_update_norm:g}"
    return None


def layer_sizes(model: bytes) -> tuple[int, ...]:
    """Return elements of each of the model's tensors; together, those of an update.

    Raises:
        ModelError: if `model` is no safetensors file of float32 tensors.
    """
    weights, _ = decode_model(model)
    return sizes_of(layout_of(weights))


def sizes_of(layout: ModelLayout) -> tuple[int, ...]:
    """Return elements of each tensor, in the order of the flat vector."""
    return tuple(spec.size for spec in layout.tensors)
