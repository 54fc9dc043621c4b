"""From the contributions of a round to the model it proposes: pure computation.

Runs in a kernel thread. The same contributions give the same bytes, in whatever order they came.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aggregators.base import (
    Aggregate,
    AggregatorConfig,
    GradientAggregator,
    ServerKnowledge,
    Update,
)
from aggregators.errors import AggregationError
from aggregators.vectors import decode_model, encode_model, flatten, layout_of, unflatten
from compression.codec import decode
from server.storage.ports import Contribution

Payload = bytes | memoryview
Model = tuple[Mapping[str, NDArray[np.float32]], Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationSettings:
    """How a round's updates become a change of the model."""

    aggregator: AggregatorConfig
    server_learning_rate: float = 1.0
    num_threads: int | None = None  # of the aggregation; None: one a core; changes no result


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltModel:
    """A candidate with what is worth knowing of its making."""

    data: bytes
    sha256: str
    excluded: tuple[str, ...]  # devices whose update got no weight
    metrics: Mapping[str, float]
    liars: tuple[int, ...] = ()  # share holders whose share of the sums was wrong


def build_candidate(
    base: bytes,
    contributions: Sequence[Contribution],
    payloads: Sequence[Payload],
    settings: AggregationSettings,
) -> BuiltModel:
    """Apply the aggregate of the contributions to the base model: x' = x + lr * aggregate.

    Args:
        base: safetensors file of the base version.
        contributions: admitted updates.
        payloads: their encoded updates, in the same order.
        settings: rule and server learning rate.

    Returns:
        The candidate. Computed in float64, rounded to float32 once.

    Raises:
        AggregationError: if the rule does not admit these contributions, or a payload is damaged.
    """
    model = decode_model(base)
    layout = layout_of(model[0])
    updates = [
        Update(
            key=contribution.device_id,
            vector=_decode(payload, layout.dim, contribution),
            num_samples=contribution.num_samples,
        )
        for contribution, payload in zip(contributions, payloads, strict=True)
    ]
    aggregator = GradientAggregator(settings.aggregator, num_threads=settings.num_threads)
    aggregate = aggregator.aggregate(updates, ServerKnowledge(seed=_seed(contributions)))
    data = moved_model(model, aggregate.vector, settings.server_learning_rate)
    return BuiltModel(
        data=data,
        sha256=hashlib.sha256(data).hexdigest(),
        excluded=tuple(
            key
            for key, weight in zip(aggregate.keys, aggregate.weights, strict=True)
            if weight == 0
        ),
        metrics=_metrics(contributions, aggregate),
    )


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
    except AggregationError as error:
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


def model_dim(model: bytes) -> int:
    """Elements of an update to this model.

    Raises:
        AggregationError: if `model` is no safetensors file of float32 tensors.
    """
    weights, _ = decode_model(model)
    return layout_of(weights).dim


def _decode(payload: Payload, dim: int, contribution: Contribution) -> NDArray[np.float32]:
    if len(payload) != contribution.payload_bytes:
        msg = (
            f"the stored update of {contribution.device_id} has {len(payload)} bytes, "
            f"{contribution.payload_bytes} were admitted"
        )
        raise AggregationError(msg)
    return decode(payload, dim=dim)


def _seed(contributions: Sequence[Contribution]) -> int:
    """Derive what a rule draws from all updates: no device knows it before the round closes."""
    digest = hashlib.sha256()
    for contribution in sorted(contributions, key=lambda contribution: contribution.device_id):
        digest.update(contribution.digest)
    return int.from_bytes(digest.digest()[:8], "big")


def _metrics(contributions: Sequence[Contribution], aggregate: Aggregate) -> dict[str, float]:
    metrics = {
        "contributions": float(len(contributions)),
        "num_samples": float(sum(c.num_samples for c in contributions)),
        "num_clipped": float(aggregate.num_clipped),
        "excluded": float(np.count_nonzero(aggregate.weights == 0)),
        "update_norm": float(np.linalg.norm(aggregate.vector.astype(np.float64))),
        "max_contribution_norm": float(aggregate.norms.max()),
    }
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
