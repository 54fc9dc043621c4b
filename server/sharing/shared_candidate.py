"""From the sums that a shared round opened to the model it proposes: pure computation."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from aggregators.base import GradientAggregator, ServerKnowledge, Update
from aggregators.vectors import decode_model
from security.shared_round.sum_opening import OpenedSums
from server.round.candidate import AggregationSettings, BuiltModel, moved_model
from server.sharing.released import ReleasedSums


def build_shared_candidate(
    base: bytes, released: ReleasedSums, settings: AggregationSettings
) -> BuiltModel:
    """Apply what was opened to the base model: x' = x + lr * aggregate.

    One sum is the aggregate itself, as a weighted mean. Of several, the means of the groups are the
    rows that the task's rule aggregates, each with the weight of its group.

    Args:
        base: safetensors file of the base version.
        released: the sums.
        settings: server learning rate, and the rule for several sums.

    Raises:
        AggregationError: if the rule does not admit so few groups.

    Guarantees:
        The same sums give the same bytes.
    """
    means = group_means(released.opened, released.weights, released.params.fraction_bits)
    step = means[0]
    excluded_groups = 0
    if len(means) > 1:
        rows = [
            Update(key=f"group-{index:05d}", vector=mean.astype(np.float32), num_samples=weight)
            for index, (mean, weight) in enumerate(zip(means, released.weights, strict=True))
        ]
        aggregator = GradientAggregator(settings.aggregator, num_threads=settings.num_threads)
        # What a rule draws must not be known before the sums are.
        digest = hashlib.sha256(b"".join(mean.tobytes() for mean in means)).digest()
        knowledge = ServerKnowledge(seed=int.from_bytes(digest[:8], "big"))
        aggregate = aggregator.aggregate(rows, knowledge)
        step = aggregate.vector.astype(np.float64)
        excluded_groups = int(np.count_nonzero(aggregate.weights == 0))
    data = moved_model(decode_model(base), step, settings.server_learning_rate)
    return BuiltModel(
        data=data,
        sha256=hashlib.sha256(data).hexdigest(),
        excluded=released.excluded,
        metrics={
            "contributions": float(released.members + len(released.excluded)),
            "excluded": float(len(released.excluded)),
            "excluded_groups": float(excluded_groups),
            "groups": float(len(means)),
            "num_clipped": 0.0,
            "update_norm": float(np.linalg.norm(step)),
        },
        liars=released.opened.liars,
    )


def group_means(
    opened: OpenedSums, weights: tuple[int, ...], fraction_bits: int
) -> list[NDArray[np.float64]]:
    """Decode each sum and divide it by its weight; exact but for one rounding."""
    unit = 2.0**-fraction_bits
    return [
        total.astype(np.float64) * unit / weight
        for total, weight in zip(opened.sums, weights, strict=True)
    ]
