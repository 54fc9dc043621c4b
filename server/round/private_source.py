"""A private round as a source of contributions: the coordinator clips, sums and adds the noise.

The same contributions give the same bytes, noise included, in whatever order they came and on
whatever machine: a coordinator that takes over computes the same candidate.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators.base import Update
from aggregators.dp import NOBODY, DPConfig, PrivateAggregate, RoundNoise
from aggregators.integrated import PrivateUpdates, StepReport
from aggregators.private_rules import private_sum_sensitivity
from privacy.adaptive_clipping import AdaptiveClipping, default_count_stddev
from privacy.charge import Charge, Mechanism
from privacy.fixed_point import fine_fraction_bits
from privacy.keystream import derive_key
from server.round.candidate import RoundFacts
from server.round.plain_source import StoredUpdates
from server.round.round_privacy import RoundPrivacy
from updates import plan_message
from updates.compression_plan import CompressionPlan
from updates.vectors import ModelLayout

_RUN_LABEL: Final = b"banded run"

Noise = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateSettings:
    """What of a task's settings decides its private aggregates; the rest is the round's own.

    Attributes:
        rule: "mean" or "multi-krum".
        num_malicious_nodes, num_to_select: f and m of "multi-krum".
        max_num_samples: cap; an update weighs min(num_samples, cap) / cap.
        adapts: whether the clipping norm moves, as the three below say.
        target_quantile: share of updates that shall be within it.
        clipping_learning_rate: how fast it moves.
        count_noise: of the count it rests on; 0: a twentieth of the expected updates.
    """

    rule: str = "mean"
    num_malicious_nodes: int = 0
    num_to_select: int | None = None
    max_num_samples: int = 1
    adapts: bool = False
    target_quantile: float = 0.9
    clipping_learning_rate: float = 0.2
    count_noise: float = 0.0

    def config(self, privacy: RoundPrivacy, *, dim: int, num_updates: int = 0) -> DPConfig:
        """Tell how a round's updates of `dim` numbers become one aggregate.

        Args:
            privacy: of the round.
            dim: of what is summed.
            num_updates: that came in. There is noise for at least so many: the rule may have been
                another when the round opened. 0: as the round says.

        Raises:
            AggregationError: if the rule or a number of it is out of range.
            PrivacyError: if another setting is out of range, or does not go with the others.
        """
        charge = Charge.from_text(privacy.charge)
        adaptive = None
        if self.adapts:
            count_stddev = self.count_noise or default_count_stddev(privacy.expected_updates)
            adaptive = AdaptiveClipping(
                count_stddev=count_stddev,
                target_quantile=self.target_quantile,
                learning_rate=self.clipping_learning_rate,
            )
        return DPConfig(
            clipping_norm=privacy.clipping_norm,
            noise_multiplier=charge.noise_multiplier,
            expected_updates=privacy.expected_updates,
            sensitivity=max(privacy.sensitivity, self._sensitivity(num_updates)),
            rule=self.rule,
            num_malicious_nodes=self.num_malicious_nodes,
            num_to_select=self.num_to_select,
            max_num_samples=self.max_num_samples,
            fraction_bits=fine_fraction_bits(privacy.clipping_norm, dim=dim),
            mechanism=charge.mechanism,
            bands=charge.bands,
            adaptive_clipping=adaptive,
        )

    def _sensitivity(self, num_updates: int) -> float:
        return private_sum_sensitivity(
            self.rule,
            num_updates=num_updates,
            num_byzantine=self.num_malicious_nodes,
            num_to_select=self.num_to_select,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateRound:
    """`RoundSource` of a round to whose sum the coordinator adds noise.

    What went through a linear map is clipped, summed and noised as it is, and expanded after.

    Attributes:
        stored: what was admitted; may be nothing: what is published then is noise, and nobody
            learns so from a round that would be missing.
        number: of the round.
        privacy: of the round.
        settings: of the task.
        noise_key: the task's, 32 secret bytes.
        history: noise of earlier rounds by their number, where it is kept; of banded noise.

    Guarantees:
        The model, its metrics and the next clipping norm tell of the updates' contents only what
        one Gaussian mechanism with the charge's noise multiplier tells. That some came in, and how
        many, is told.
        Other contributions, or other settings, have other noise.
    """

    stored: StoredUpdates
    number: int
    privacy: RoundPrivacy
    settings: PrivateSettings
    noise_key: bytes = field(repr=False)
    history: Mapping[int, Noise] = field(default_factory=dict, repr=False)

    def contributions(self, layout: ModelLayout) -> PrivateUpdates:
        """Decode the updates, and tell what their noise follows from.

        Raises:
            AggregationError: if the rule or a number of it is out of range, or a payload has
                another length than was admitted.
            CodecError: if a payload does not decode.
            PrivacyError: if a setting is out of range.
        """
        updates = self.stored.decoded(layout)
        dim = summed_dim(layout.dim, self.stored.compression)
        if not updates:
            updates = [Update(key=NOBODY, vector=np.zeros(dim, np.float32), num_samples=1)]
        admitted = self.stored.contributions
        config = self.settings.config(self.privacy, dim=dim, num_updates=len(admitted))
        told = {c.device_id: c.within_clipping_norm for c in admitted}
        return PrivateUpdates(
            updates=updates,
            config=config,
            noise=round_noise(config, self, dim=dim),
            within_norm={key: flag for key, flag in told.items() if flag is not None},
            linear_map=self.stored.linear_map,
        )

    def facts(self, report: StepReport) -> RoundFacts:
        """Tell what noise protects; keep the noise itself secret.

        Raises:
            TypeError: if the report is of another mode.
        """
        aggregate = report.combined
        if not isinstance(aggregate, PrivateAggregate):
            msg = f"a private round made a {type(aggregate).__name__}"
            raise TypeError(msg)
        private = aggregate.private
        chosen = zip(private.keys, private.selected.tolist(), strict=True)
        return RoundFacts(
            excluded=tuple(key for key, is_in in chosen if not is_in),
            metrics=_metrics(len(self.stored.contributions), aggregate, report),
            next_clipping_norm=aggregate.next_clipping_norm,
            noise=private.noise,
        )


def round_noise(config: DPConfig, round_: PrivateRound, *, dim: int) -> RoundNoise:
    """Return what decides the noise of a round: its key, and all that goes into the sum.

    Banded noise belongs to a run of equal settings: where they change, a new run begins with noise
    of its own, independent of that before.
    """
    settings = _text_of(config, dim)
    key = round_.noise_key
    if config.mechanism is Mechanism.BANDED:
        key = derive_key(key, _RUN_LABEL, settings)
    manifest = hashlib.sha256(settings.encode())
    compression = round_.stored.compression
    if compression is not None:  # the same bytes are other numbers by another plan
        # What may differ from machine to machine, and changes no number, is left out.
        plan = replace(compression, zstd_version=0)
        manifest.update(hashlib.sha256(plan_message.to_bytes(plan)).digest())
    for contribution in sorted(round_.stored.contributions, key=lambda one: one.device_id):
        line = [
            contribution.device_id,
            contribution.digest.hex(),
            contribution.num_samples,
            contribution.within_clipping_norm,
        ]
        manifest.update(json.dumps(line).encode())
    return RoundNoise(
        noise_key=key,
        round_number=round_.number,
        manifest_sha256=manifest.digest(),
        history=round_.history.get,
    )


def summed_dim(model_dim: int, compression: CompressionPlan | None) -> int:
    """Count the numbers of the sum that gets noise: what a common map gives, else the model's."""
    if compression is not None and compression.is_common_map:
        return compression.num_values
    return model_dim


def run_id(config: DPConfig, *, dim: int) -> str:
    """Name the run of banded noise that a round belongs to; tells nothing of the key."""
    return hashlib.sha256(_text_of(config, dim).encode()).hexdigest()[:16]


def _text_of(config: DPConfig, dim: int) -> str:
    """Return what the noise is bound to; floats as JSON writes them, which is exact."""
    bound = (
        config.rule,
        config.num_malicious_nodes,
        config.num_to_select,
        config.max_num_samples,
        config.clipping_norm,
        config.noise_multiplier,
        config.sensitivity,
        config.expected_updates,
        config.fraction_bits,
        config.mechanism.value,
        config.bands,
        None if config.adaptive_clipping is None else config.adaptive_clipping.count_stddev,
        dim,
    )
    return json.dumps(bound)


def _metrics(
    contributions: int, aggregate: PrivateAggregate, report: StepReport
) -> dict[str, float]:
    """Return what may be told: no norm, loss or count that one update's content could move."""
    selected = int(np.count_nonzero(aggregate.private.selected))
    metrics = {
        "contributions": float(contributions),
        "excluded": float(max(0, contributions - selected)),
        "noise_stddev": aggregate.noise_stddev,
        "clipping_norm": aggregate.clipping_norm,
        "update_norm": report.update_norm,
    }
    if aggregate.within_fraction is not None:
        metrics["within_fraction"] = aggregate.within_fraction
    return metrics
