"""A plain round as a source of contributions: the coordinator sees each update."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from aggregators.base import ServerKnowledge, Update
from aggregators.byzantine import RobustAggregate
from aggregators.compressed import AnyUpdate, SparseUpdate
from aggregators.errors import AggregationError
from aggregators.integrated import PlainUpdates, StepReport
from aggregators.rows.sparse_rows import SparseVector
from server.round.candidate import RoundFacts, sizes_of
from server.round.ports import Contribution
from updates.codec import decode
from updates.compression_plan import CompressionPlan
from updates.coordinate_maps import LinearMap, linear_map
from updates.sparse import Content, SparseValues
from updates.update_codec import codec_for
from updates.vectors import ModelLayout

Payload = bytes | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredUpdates:
    """What a round admitted, as it is stored.

    Attributes:
        contributions: admitted updates, in any order.
        payloads: their encoded updates, in the same order.
        compression: of the round; None: updates are dense float32.
    """

    contributions: Sequence[Contribution]
    payloads: Sequence[Payload]
    compression: CompressionPlan | None = None

    @property
    def linear_map(self) -> LinearMap | None:
        """The map that all updates went through; None: none, or each device chose its own."""
        return common_map(self.compression)

    def decoded(self, layout: ModelLayout) -> list[AnyUpdate]:
        """Decode the updates: as vectors, mapped or not, or as the entries that were sent.

        Raises:
            AggregationError: if a payload has another length than was admitted.
            CodecError: if it does not decode.
        """
        read = self._reader(layout)
        updates: list[AnyUpdate] = []
        for contribution, payload in zip(self.contributions, self.payloads, strict=True):
            _check_length(payload, contribution)
            key, num_samples = contribution.device_id, contribution.num_samples
            content = read(payload)
            if isinstance(content, SparseValues):
                entries = SparseVector(
                    indices=content.indices, values=content.values, dim=content.dim
                )
                updates.append(SparseUpdate(key=key, vector=entries, num_samples=num_samples))
            else:
                updates.append(Update(key=key, vector=content, num_samples=num_samples))
        return updates

    def _reader(self, layout: ModelLayout) -> Callable[[Payload], Content]:
        if self.compression is None:
            return partial(decode, dim=layout.dim)
        return codec_for(self.compression, sizes_of(layout)).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainRound:
    """`RoundSource` of a plain round.

    Attributes:
        stored: what was admitted.
        tells_losses: whether the devices' losses are among what is told.
    """

    stored: StoredUpdates
    tells_losses: bool = True

    def contributions(self, layout: ModelLayout) -> PlainUpdates:
        """Decode the updates.

        Raises:
            AggregationError: if a payload has another length than was admitted.
            CodecError: if it does not decode.
        """
        return PlainUpdates(
            updates=self.stored.decoded(layout),
            knowledge=ServerKnowledge(seed=_seed(self.stored.contributions)),
            linear_map=self.stored.linear_map,
        )

    def facts(self, report: StepReport) -> RoundFacts:
        """Say who was left out, and how long the updates were.

        Raises:
            TypeError: if the report is of another mode.
        """
        robust = report.combined
        if not isinstance(robust, RobustAggregate):
            msg = f"a plain round made a {type(robust).__name__}"
            raise TypeError(msg)
        found, contributions = robust.aggregate, self.stored.contributions
        weightless = zip(found.keys, (found.weights == 0).tolist(), strict=True)
        unusable = {rejection.key for rejection in robust.rejections}
        excluded = unusable | {key for key, has_none in weightless if has_none}
        metrics = {
            "contributions": float(len(contributions)),
            "num_samples": float(sum(c.num_samples for c in contributions)),
            "num_clipped": float(found.num_clipped),
            "excluded": float(len(excluded)),
            "update_norm": report.update_norm,
            "max_contribution_norm": float(found.norms.max()),
        }
        if robust.is_degraded:
            metrics["degraded"] = 1.0
        if self.tells_losses:
            metrics |= _losses(contributions)
        return RoundFacts(excluded=tuple(sorted(excluded)), metrics=metrics)


def common_map(compression: CompressionPlan | None) -> LinearMap | None:
    """Return the map of a plan whose devices all send the same numbers; None: there is none."""
    if compression is None or not compression.is_common_map:
        return None
    return linear_map(compression)


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
