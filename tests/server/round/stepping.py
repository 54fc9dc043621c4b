"""One step of the road, for tests."""

from collections.abc import Sequence

from aggregators.byzantine import ByzantineConfig
from aggregators.config import AggregatorConfig
from aggregators.integrated import IntegratedConfig
from aggregators.server_optimizer import ServerOptimizerConfig
from server.round.candidate import AggregationSettings, BaseVersion, BuiltModel, build_candidate
from server.round.plain_source import Payload, PlainRound, StoredUpdates
from server.round.ports import Contribution
from updates.compression_plan import CompressionPlan


def settings_of(
    aggregator: AggregatorConfig | None = None, *, learning_rate: float | None = None
) -> AggregationSettings:
    """Settings that follow the rule's aggregate."""
    return AggregationSettings(
        aggregator=IntegratedConfig(
            byzantine=ByzantineConfig(aggregator=aggregator or AggregatorConfig()),
            optimizer=ServerOptimizerConfig(learning_rate=learning_rate),
        )
    )


def plain_step(
    base: bytes | BaseVersion,
    contributions: Sequence[Contribution],
    payloads: Sequence[Payload],
    settings: AggregationSettings,
    compression: CompressionPlan | None = None,
    *,
    tells_losses: bool = True,
) -> BuiltModel:
    """The candidate of a plain round."""
    stored = StoredUpdates(contributions=contributions, payloads=payloads, compression=compression)
    version = BaseVersion(model=base) if isinstance(base, bytes) else base
    return build_candidate(version, PlainRound(stored=stored, tells_losses=tells_losses), settings)
