"""Settings of one learning task."""

import math
from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from aggregators.config import MAX_SAMPLE_CAP
from aggregators.server_optimizer import ServerOptimizerConfig
from privacy.clipping import MIN_CLIP_NORM
from server.config.compression_config import CompressionConfig
from server.config.formats import TaskName, Version
from server.config.privacy_config import PrivacyConfig
from server.config.section import Section
from server.config.sharing_config import MIN_MEMBERS_SHARE, SharingConfig

_OPTIMIZER: Final = ServerOptimizerConfig()


class CriteriaConfig(Section):
    """What a device must fulfil to be selected."""

    min_battery_percent: int = Field(default=15, ge=0, le=100)
    require_charging: bool = False
    require_unmetered: bool = False
    require_idle: bool = False
    min_ram_mib: int = Field(default=0, ge=0, lt=1 << 32)
    min_app_version: Version = Field(default="", max_length=64)


class PlanConfig(Section):
    """What a device does."""

    local_epochs: int = Field(default=1, ge=1, le=1000)
    batch_size: int = Field(default=32, ge=1, le=1 << 20)
    learning_rate: float = Field(default=0.1, gt=0, le=1000, allow_inf_nan=False)
    clipping_norm: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    hyperparameters: dict[str, float] = Field(default_factory=dict)


class AggregationConfig(Section):
    """How contributions become one model."""

    rule: str = Field(
        default="mean",
        description="a rule, after any steps, such as nnm+trimmed-mean; docs/Aggregation.md",
    )
    num_malicious_nodes: int = Field(default=0, ge=0, description="f, attackers to withstand")
    malicious_fraction: float | None = Field(
        default=None,
        ge=0,
        lt=0.5,
        description="f as a share of the updates that came, instead of num-malicious-nodes",
    )
    may_degrade: bool = Field(
        default=False,
        description="where too few updates came for the rule, take multi-krum, trimmed-mean or"
        " median, the first that admits them, and say so; false: abandon the round",
    )
    num_nodes_to_select: int | None = Field(default=None, ge=1, description="m of Multi-Krum")
    trim: int | None = Field(default=None, ge=0)
    max_num_samples: int = Field(
        default=1000, ge=1, le=MAX_SAMPLE_CAP, description="cap on one device's weight"
    )
    clipping_norm: float | None = Field(default=None, ge=MIN_CLIP_NORM, allow_inf_nan=False)
    norm_factor: float = Field(
        default=1.5, ge=1, allow_inf_nan=False, description="of clip and norm-threshold, in medians"
    )
    bucket_size: int = Field(default=2, ge=1, description="updates in a bucket of bucketing")
    clipping_radius: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="tau of centered-clipping"
    )
    max_steps: int | None = Field(
        default=None, ge=1, le=10_000, description="of geometric-median and centered-clipping"
    )
    server_optimizer: Literal["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"] = Field(
        default="fedavg", description="what the aggregate does to the model"
    )
    server_learning_rate: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="none: 1 for fedavg and fedavgm, 0.01 for the others",
    )
    server_momentum: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="of all but fedavg; none: 0.9, for fedadagrad 0",
    )
    server_beta2: float = Field(
        default=_OPTIMIZER.beta2,
        ge=0,
        lt=1,
        description="decay of the second moment, of fedadam and fedyogi",
    )
    server_adaptivity: float = Field(
        default=_OPTIMIZER.adaptivity,
        gt=0,
        allow_inf_nan=False,
        description="tau of fedadam, fedyogi and fedadagrad: aggregates well below it are followed"
        " in proportion, those well above it only by sign",
    )
    engine: Literal["local", "torch", "ray"] = Field(
        default="local",
        description="what computes with dense updates; decides how fast, never what comes out",
    )


class ValidationConfig(Section):
    """What a candidate must pass."""

    max_update_norm: float | None = Field(
        default=None,
        gt=0,
        description="largest L2 norm of the change of the model; none: any finite one",
    )


class TaskConfig(Section):
    """One learning task."""

    name: TaskName = Field(description="[a-z0-9-], up to 64 characters")
    initial_model: Path = Field(description="safetensors file, float32 tensors")
    mode: Literal["plain", "shared"] = Field(
        default="plain", description="shared: the coordinator never sees an update"
    )
    num_rounds: int = Field(
        default=100, ge=1, le=1_000_000_000, description="model versions to publish"
    )
    reporting_goal: int = Field(default=10, ge=1, le=100_000, description="updates wanted a round")
    min_contributions: int = Field(default=0, ge=0, description="0: the reporting goal")
    over_selection: float = Field(default=1.3, ge=1, le=10)
    selection_timeout_s: float = Field(
        default=60,
        gt=0,
        le=30 * 86_400,
        description="after it, a cohort of min-contributions will do",
    )
    collection_timeout_s: float = Field(default=600, gt=0, le=7 * 86_400)
    max_participations: int | None = Field(default=None, ge=1, le=1_000_000_000)
    keep_contributions: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="latest rounds, published or not, whose updates are kept, so that they can be"
        " replayed; plain tasks without privacy only",
    )
    min_rounds_between: int = Field(default=0, ge=0, le=1_000_000_000)
    fairness: float = Field(default=1.0, ge=0, le=10)
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=1 << 128,
        description="makes selection repeatable, and guessable by devices; none: a secret draw",
    )
    criteria: CriteriaConfig = CriteriaConfig()
    plan: PlanConfig = PlanConfig()
    aggregation: AggregationConfig = AggregationConfig()
    validation: ValidationConfig = ValidationConfig()
    sharing: SharingConfig = SharingConfig()
    compression: CompressionConfig = CompressionConfig()
    privacy: PrivacyConfig = PrivacyConfig()

    @property
    def is_shared(self) -> bool:
        """Whether updates are shared among holders and only sums are opened."""
        return self.mode == "shared"

    @property
    def quorum(self) -> int:
        """Contributions below which a round is abandoned."""
        return self.min_contributions or self.reporting_goal

    @property
    def min_members(self) -> int:
        """Fewest updates that a shared round opens together."""
        wanted = self.sharing.min_members or math.ceil(MIN_MEMBERS_SHARE * self.quorum)
        if self.sharing.group_size and not self.sharing.min_members:
            wanted = min(wanted, self.sharing.group_size)
        return max(2, wanted)


def weight_cap(task: TaskConfig) -> int:
    """Cap of the sample counts that weights follow from.

    Noise does not hide how many samples a device says it has. So where a task is private, all
    updates weigh the same unless the settings name a cap.
    """
    settings = task.aggregation
    if task.privacy.is_on and "max_num_samples" not in settings.model_fields_set:
        return 1
    return settings.max_num_samples


def value_type_of(task: TaskConfig) -> str:
    """Tell how the task's numbers are written."""
    compression = task.compression
    exact = compression.is_dense or task.is_shared
    return compression.value_type or ("float32" if exact else "float16")
