"""From the contributions of a round to the model it proposes: pure computation.

Runs in a kernel thread. The same contributions give the same bytes, in whatever order they came.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from aggregators.base import (
    Aggregate,
    AggregatorConfig,
    ServerKnowledge,
    Update,
)
from aggregators.compressed import CompressedGradientAggregator, SparseUpdate, ranks_values
from aggregators.engines import LOCAL, Engine
from aggregators.errors import AggregationError
from aggregators.sparse_rows import SparseVector
from server.storage.ports import Contribution
from updates.codec import decode
from updates.coordinate_maps import linear_map
from updates.errors import ModelError
from updates.plan import CompressionPlan
from updates.sparse import Content, SparseValues
from updates.update_codec import codec_for
from updates.vectors import (
    ModelLayout,
    decode_model,
    encode_model,
    flatten,
    layout_of,
    unflatten,
)

Payload = bytes | memoryview
Model = tuple[Mapping[str, NDArray[np.float32]], Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationSettings:
    """How a round's updates become a change of the model."""

    aggregator: AggregatorConfig
    server_learning_rate: float = 1.0
    engine: Engine = LOCAL  # computes with dense updates; changes no result
    tells_losses: bool = True  # of the devices, in the candidate's metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltModel:
    """A candidate with what is worth knowing of its making."""

    data: bytes
    sha256: str
    excluded: tuple[str, ...]  # devices whose update got no weight
    metrics: Mapping[str, float]
    liars: tuple[int, ...] = ()  # share holders whose share of the sums was wrong
    next_clipping_norm: float | None = None  # C of the rounds after; None: as before


def build_candidate(
    base: bytes,
    contributions: Sequence[Contribution],
    payloads: Sequence[Payload],
    settings: AggregationSettings,
    compression: CompressionPlan | None = None,
) -> BuiltModel:
    """Apply the aggregate of the contributions to the base model: x' = x + lr * aggregate.

    Where all updates went through one linear map, the rule combines what the map gave, and the
    aggregate is expanded once. Updates of coordinates that each device chose are combined as sparse
    rows; as dense ones by rules that rank values, for which the settings ask that enough are sent.

    Args:
        base: safetensors file of the base version.
        contributions: admitted updates.
        payloads: their encoded updates, in the same order.
        settings: rule and server learning rate.
        compression: of the round; None: updates are dense float32.

    Returns:
        The candidate. Computed in float64, rounded to float32 once; with a linear map also the
        aggregate before it is expanded.

    Raises:
        AggregationError: if the rule does not admit these contributions, or a payload is damaged.
        CodecError: if a payload does not decode.
        ModelError: if `base` is no model.
    """
    model = decode_model(base)
    updates = updates_of(model, contributions, payloads, compression)
    if ranks_values(settings.aggregator):
        # A device may send fewer entries than it was asked for: that must not end the round.
        updates = [_dense(update) for update in updates]
    aggregator = CompressedGradientAggregator(settings.aggregator, engine=settings.engine)
    aggregate = aggregator.aggregate(updates, ServerKnowledge(seed=_seed(contributions)))
    step = expanded(aggregate.vector, compression)
    data = moved_model(model, step, settings.server_learning_rate)
    return BuiltModel(
        data=data,
        sha256=hashlib.sha256(data).hexdigest(),
        excluded=tuple(
            key
            for key, weight in zip(aggregate.keys, aggregate.weights, strict=True)
            if weight == 0
        ),
        metrics=_metrics(contributions, aggregate)
        | (_losses(contributions) if settings.tells_losses else {}),
    )


def updates_of(
    model: Model,
    contributions: Sequence[Contribution],
    payloads: Sequence[Payload],
    compression: CompressionPlan | None,
) -> list[Update | SparseUpdate]:
    """Decode a round's updates: as vectors, mapped or not, or as the entries that were sent.

    Raises:
        AggregationError: if a payload has another length than was admitted.
        CodecError: if it does not decode.
    """
    layout = layout_of(model[0])
    read = _reader(layout, compression)
    updates: list[Update | SparseUpdate] = []
    for contribution, payload in zip(contributions, payloads, strict=True):
        _check_length(payload, contribution)
        key, num_samples = contribution.device_id, contribution.num_samples
        content = read(payload)
        if isinstance(content, SparseValues):
            entries = SparseVector(indices=content.indices, values=content.values, dim=content.dim)
            updates.append(SparseUpdate(key=key, vector=entries, num_samples=num_samples))
        else:
            updates.append(Update(key=key, vector=content, num_samples=num_samples))
    return updates


def _dense(update: Update | SparseUpdate) -> Update:
    if isinstance(update, Update):
        return update
    vector = np.zeros(update.vector.dim, np.float32)
    vector[update.vector.indices] = update.vector.values
    return Update(key=update.key, vector=vector, num_samples=update.num_samples)


def expanded(
    aggregate: NDArray[np.floating], compression: CompressionPlan | None
) -> NDArray[np.floating]:
    """Undo the round's linear map, if it has one: the transpose, in float64."""
    if compression is None or not compression.is_common_map:
        return aggregate
    return linear_map(compression).expand(aggregate.astype(np.float64, copy=False))


def moved_model(model: Model, step: NDArray[np.floating], learning_rate: float) -> bytes:
    """The file of x + learning_rate * step, computed in float64, rounded to float32 once.

    Args:
        model: tensors and metadata, as `decode_model` gives them.
        step: (d,) in the order of `flatten`.
        learning_rate: of the server.

    Raises:
        AggregationError: if `step` has another dimension than the model.
    """
    weights, metadata = model
    layout = layout_of(weights)
    if step.shape != (layout.dim,):
        msg = f"the step has shape {step.shape}, the model has {layout.dim} elements"
        raise AggregationError(msg)
    after = flatten(weights, layout).astype(np.float64) + learning_rate * step.astype(np.float64)
    with np.errstate(over="ignore"):  # an overflow is found by the validation that follows
        rounded = after.astype(np.float32)
    return encode_model(unflatten(rounded, layout), metadata)


def candidate_problem(
    candidate: bytes, base: bytes, *, max_update_norm: float | None
) -> str | None:
    """Why a candidate must not be published; None: nothing is wrong with it.

    Checks that the file decodes with the base's tensors, that every value is finite, and that the
    change from the base is no longer than `max_update_norm` (L2, float64).
    """
    try:
        new, _ = decode_model(candidate)
        old, _ = decode_model(base)
    except ModelError as error:
        return f"the candidate does not decode: {error}"
    if layout_of(new) != layout_of(old):
        return "the candidate's tensors are not those of its base version"
    after, before = flatten(new, layout_of(new)), flatten(old, layout_of(old))
    if not np.isfinite(after).all():
        return "the candidate holds NaN or infinity"
    norm = float(np.linalg.norm(after.astype(np.float64) - before))
    if max_update_norm is not None and norm > max_update_norm:
        return f"update norm {norm:g} exceeds max-update-norm={max_update_norm:g}"
    return None


def layer_sizes(model: bytes) -> tuple[int, ...]:
    """Elements of each of the model's tensors; together, those of an update.

    Raises:
        ModelError: if `model` is no safetensors file of float32 tensors.
    """
    weights, _ = decode_model(model)
    return _sizes(layout_of(weights))


def model_dim(model: bytes) -> int:
    """Elements of an update to this model.

    Raises:
        ModelError: if `model` is no safetensors file of float32 tensors.
    """
    return sum(layer_sizes(model))


def _sizes(layout: ModelLayout) -> tuple[int, ...]:
    return tuple(spec.size for spec in layout.tensors)


def _reader(
    layout: ModelLayout, compression: CompressionPlan | None
) -> Callable[[Payload], Content]:
    if compression is None:
        return partial(decode, dim=layout.dim)
    return codec_for(compression, _sizes(layout)).decode


def _check_length(payload: Payload, contribution: Contribution) -> None:
    if len(payload) != contribution.payload_bytes:
        msg = (
            f"the stored update of {contribution.device_id} has {len(payload)} bytes, "
            f"{contribution.payload_bytes} were admitted"
        )
        raise AggregationError(msg)


def _seed(contributions: Sequence[Contribution]) -> int:
    """Derive what a rule draws from all updates: no device knows it before the round closes."""
    digest = hashlib.sha256()
    for contribution in sorted(contributions, key=lambda contribution: contribution.device_id):
        digest.update(contribution.digest)
    return int.from_bytes(digest.digest()[:8], "big")


def _metrics(contributions: Sequence[Contribution], aggregate: Aggregate) -> dict[str, float]:
    return {
        "contributions": float(len(contributions)),
        "num_samples": float(sum(c.num_samples for c in contributions)),
        "num_clipped": float(aggregate.num_clipped),
        "excluded": float(np.count_nonzero(aggregate.weights == 0)),
        "update_norm": float(np.linalg.norm(aggregate.vector.astype(np.float64))),
        "max_contribution_norm": float(aggregate.norms.max()),
    }


def _losses(contributions: Sequence[Contribution]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name in ("loss_before", "loss_after"):
        told = [(getattr(c, name), c.num_samples) for c in contributions]
        known = [(loss, weight) for loss, weight in told if loss is not None]
        if known:
            # Devices report these themselves: a hint for people, never an input of a decision.
            total = sum(weight for _, weight in known)
            mean = sum(loss * (weight / total) for loss, weight in known)
            if math.isfinite(mean):
                metrics[name] = mean
    return metrics
