"""From the sums that a shared round opened to the model it proposes: pure computation."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from aggregators.base import GradientAggregator, ServerKnowledge, Update
from aggregators.errors import AggregationError
from security.shared_round.sum_opening import OpenedSums
from server.round.candidate import AggregationSettings, BuiltModel, expanded, moved_model
from server.round.privacy import RoundPrivacy
from server.sharing.released import ReleasedSums
from updates.plan import CompressionPlan
from updates.vectors import decode_model


def build_shared_candidate(
    base: bytes,
    released: ReleasedSums,
    settings: AggregationSettings,
    *,
    compression: CompressionPlan | None = None,
    privacy: RoundPrivacy | None = None,
) -> BuiltModel:
    """Apply what was opened to the base model: x' = x + lr * aggregate.

    One sum is the aggregate itself, as a weighted mean. Of several, the means of the groups are the
    rows that the task's rule aggregates, each with the weight of its group. The one sum of a
    private round, in which the holders' noise is, is divided by a number fixed in advance.

    Args:
        base: safetensors file of the base version.
        released: the sums.
        settings: server learning rate, and the rule for several sums.
        compression: of the round: the aggregate is expanded once. None: it is of whole updates.
        privacy: of the round; None: no noise is in the sums.

    Raises:
        AggregationError: if the rule does not admit so few groups, or a private round has several
            sums or no noise in them.

    Guarantees:
        The same sums give the same bytes.
    """
    _check_privacy(released, privacy)
    weights: tuple[float, ...] = released.weights
    if privacy is not None:
        weights = (privacy.expected_updates,)
    means = group_means(released.opened, weights, released.params.fraction_bits)
    step: NDArray[np.floating] = means[0]
    excluded_groups = 0
    if len(means) > 1:
        rows = [
            Update(key=f"group-{index:05d}", vector=mean.astype(np.float32), num_samples=weight)
            for index, (mean, weight) in enumerate(zip(means, released.weights, strict=True))
        ]
        aggregator = GradientAggregator(settings.aggregator, engine=settings.engine)
        # What a rule draws must not be known before the sums are.
        digest = hashlib.sha256(b"".join(mean.tobytes() for mean in means)).digest()
        knowledge = ServerKnowledge(seed=int.from_bytes(digest[:8], "big"))
        aggregate = aggregator.aggregate(rows, knowledge)
        step = aggregate.vector.astype(np.float64)
        excluded_groups = int(np.count_nonzero(aggregate.weights == 0))
    step = expanded(step, compression)
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


def _check_privacy(released: ReleasedSums, privacy: RoundPrivacy | None) -> None:
    if privacy is None:
        return
    if len(released.opened.sums) != 1 or not released.params.has_noise:
        msg = (
            f"a private round must have one sum with noise, got {len(released.opened.sums)} and"
            f" {released.params.noise_dealers} dealers"
        )
        raise AggregationError(msg)


def group_means(
    opened: OpenedSums, weights: tuple[float, ...], fraction_bits: int
) -> list[NDArray[np.float64]]:
    """Decode each sum and divide it by its weight; exact but for one rounding."""
    unit = 2.0**-fraction_bits
    return [
        total.astype(np.float64) * unit / weight
        for total, weight in zip(opened.sums, weights, strict=True)
    ]
