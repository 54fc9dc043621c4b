"""The server's configuration: one frozen tree, read once from TOML.

Keys are kebab-case. `FEDAGG__SECTION__KEY=value` in the environment overrides a key of a section
(`FEDAGG__STORE__URL`); the value is read as TOML, and as a plain string where that fails. An
unknown key is an error that names the nearest valid one.
"""

import math
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, SecretStr, ValidationError, model_validator

from server.compression_config import CompressionConfig, compression_problem
from server.config_section import Section, explain
from server.privacy_config import PrivacyConfig, privacy_problem
from server.sharing_config import MIN_MEMBERS_SHARE, SharingConfig, sharing_problem
from server.storage.ports import Durability

ENVIRONMENT_PREFIX: Final = "FEDAGG__"
EMBEDDED: Final = "embedded"


class ConfigError(ValueError):
    """The configuration is not valid; the message lists every problem."""


class ListenConfig(Section):
    """Where the coordinator answers."""

    grpc: str = Field(default="127.0.0.1:50051", description="host:port of the device API")
    enrollment: str = Field(
        default="",
        description="host:port of Enrollment under TLS, where devices have no certificate yet",
    )
    http: str = Field(default="127.0.0.1:8080", description="host:port of /health and /api/v1")
    metrics: str = Field(default="127.0.0.1:9090", description="host:port of /metrics")
    workers: int = Field(default=1, ge=1, le=64, description="coordinator processes on this host")


class TlsConfig(Section):
    """TLS of the device API. Off unless all three files are given."""

    certificate: Path | None = None
    private_key: Path | None = None
    client_ca: Path | None = Field(
        default=None, description="authority whose certificates devices must present"
    )
    gateways: tuple[str, ...] = Field(
        default=(), description="common names that may submit for any device"
    )
    insecure: bool = Field(
        default=False, description="serve without TLS; devices are then believed by their word"
    )

    @property
    def is_complete(self) -> bool:
        return None not in {self.certificate, self.private_key, self.client_ca}


class EnrollmentConfig(Section):
    """Certificate authority for new devices. Off unless the three are given."""

    ca_certificate: Path | None = None
    ca_private_key: Path | None = None
    token_key: SecretStr | None = Field(
        default=None, description="key that enrollment tokens are signed with"
    )
    certificate_days: int = Field(default=90, ge=1, le=825)

    @property
    def is_complete(self) -> bool:
        return None not in {self.ca_certificate, self.ca_private_key, self.token_key}


class StoreConfig(Section):
    """Where control state and payloads live."""

    url: str = Field(
        default=EMBEDDED,
        description="redis://, rediss:// or unix:// URL, or 'embedded' for a server of our own",
    )
    blobs: str = Field(
        default="", description="fsspec URL of the blob store; empty: a folder in data-dir"
    )
    data_dir: Path = Field(default=Path(".fedagg"), description="folder for everything local")
    durability: Durability = Field(
        default=Durability.PROCESS, description="what an acknowledged update survives"
    )
    allow_weaker_durability: bool = Field(
        default=False, description="serve though the store's settings do not give `durability`"
    )
    receipt_retention_s: int = Field(
        default=7 * 86_400, ge=60, description="how long a finished round still answers retries"
    )


class LimitsConfig(Section):
    """Bounds on what peers may cost. They change how fast, never what comes out."""

    calls_in_flight: int = Field(
        default=20_000, ge=100, description="calls of all kinds at once; more: RESOURCE_EXHAUSTED"
    )
    check_ins_held: int = Field(
        default=10_000, ge=0, description="check-ins that may wait for a decision; more: no waiting"
    )
    inline_in_flight: int = Field(
        default=8192, ge=1, description="inline updates being stored at once; more: OVERLOADED"
    )
    uploads_in_flight: int = Field(
        default=8, ge=1, le=1024, description="chunked uploads read at the same time"
    )
    upload_stall_s: float = Field(
        default=20, ge=1, le=3600, description="a chunked upload silent for this long is ended"
    )
    upload_min_bytes_per_s: int = Field(
        default=32 << 10, ge=1, description="a chunked upload slower than this over all is ended"
    )
    uploads_queued: int = Field(
        default=1024, ge=0, description="chunked uploads waiting beyond those; more: OVERLOADED"
    )
    inline_max_bytes: int = Field(
        default=64 * 1024, ge=1024, le=1 << 20, description="payloads up to this are kept in Redis"
    )
    model_cache_bytes: int = Field(default=64 << 20, ge=0, description="models kept in memory")


class ObservabilityConfig(Section):
    """Traces, logs and audit."""

    otlp_endpoint: str = Field(default="", description="OTLP/gRPC collector; empty: no traces")
    trace_sample_ratio: float = Field(default=1.0, ge=0, le=1)
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    audit_log: str = Field(default="", description="file; empty: audit.jsonl in data-dir")


class AdminConfig(Section):
    """The admin API under /api/v1."""

    token: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="bearer token; required where listen.http is not loopback",
    )


class CriteriaConfig(Section):
    """What a device must fulfil to be selected."""

    min_battery_percent: int = Field(default=15, ge=0, le=100)
    require_charging: bool = False
    require_unmetered: bool = False
    require_idle: bool = False
    min_ram_mib: int = Field(default=0, ge=0)
    min_app_version: str = Field(default="", max_length=64)


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
    num_nodes_to_select: int | None = Field(default=None, ge=1, description="m of Multi-Krum")
    trim: int | None = Field(default=None, ge=0)
    max_num_samples: int = Field(default=1000, ge=1, description="cap on one device's weight")
    clipping_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    norm_factor: float = Field(
        default=1.5, ge=1, allow_inf_nan=False, description="of clip and norm-threshold, in medians"
    )
    bucket_size: int = Field(default=2, ge=1, description="updates in a bucket of bucketing")
    clipping_radius: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="tau of centered-clipping"
    )
    max_steps: int | None = Field(
        default=None, ge=1, description="of geometric-median and centered-clipping"
    )
    server_learning_rate: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class ValidationConfig(Section):
    """What a candidate must pass."""

    max_update_norm: float | None = Field(
        default=None, gt=0, description="largest L2 norm of the aggregate; none: any finite one"
    )


class TaskConfig(Section):
    """One learning task."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9-]{0,63}$")
    initial_model: Path = Field(description="safetensors file, float32 tensors")
    mode: Literal["plain", "shared"] = Field(
        default="plain", description="shared: the coordinator never sees an update"
    )
    num_rounds: int = Field(default=100, ge=1, description="model versions to publish")
    reporting_goal: int = Field(default=10, ge=1, le=100_000, description="updates wanted a round")
    min_contributions: int = Field(default=0, ge=0, description="0: the reporting goal")
    over_selection: float = Field(default=1.3, ge=1, le=10)
    selection_timeout_s: float = Field(
        default=60, gt=0, description="after it, a cohort of min-contributions will do"
    )
    collection_timeout_s: float = Field(default=600, gt=0, le=7 * 86_400)
    max_participations: int | None = Field(default=None, ge=1)
    min_rounds_between: int = Field(default=0, ge=0)
    fairness: float = Field(default=1.0, ge=0, le=10)
    seed: int | None = Field(
        default=None,
        ge=0,
        description="makes selection repeatable, and guessable by devices; none: a secret draw",
    )
    criteria: CriteriaConfig = CriteriaConfig()
    plan: PlanConfig = PlanConfig()
    aggregation: AggregationConfig = AggregationConfig()
    validation: ValidationConfig = ValidationConfig()
    sharing: SharingConfig = SharingConfig()
    compression: CompressionConfig = CompressionConfig()
    privacy: PrivacyConfig = PrivacyConfig()

    @model_validator(mode="after")
    def _check_goal(self) -> "TaskConfig":
        if self.min_contributions > self.reporting_goal:
            msg = (
                f"min-contributions={self.min_contributions} must not exceed "
                f"reporting-goal={self.reporting_goal}"
            )
            raise ValueError(msg)
        problem = sharing_problem(self) if self.is_shared else None
        if problem:
            raise ValueError(problem)
        if not self.is_shared and self.sharing != SharingConfig():
            msg = 'sharing has no meaning where mode = "plain"'
            raise ValueError(msg)
        problem = compression_problem(self)
        if problem is None and self.privacy.is_on:
            problem = privacy_problem(self)
        if problem:
            raise ValueError(problem)
        return self

    @property
    def is_shared(self) -> bool:
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


class RoundsConfig(Section):
    """The loop that drives rounds."""

    lease_ttl_s: float = Field(
        default=10, ge=0.5, le=300, description="a dead leader is replaced after this"
    )
    poll_interval_s: float = Field(default=0.5, gt=0, le=60)
    check_in_ttl_s: float = Field(
        default=30, ge=1, description="an offer not repeated for this long is void"
    )


class ServerConfig(Section):
    """Everything a coordinator is told."""

    listen: ListenConfig = ListenConfig()
    tls: TlsConfig = TlsConfig()
    enrollment: EnrollmentConfig = EnrollmentConfig()
    store: StoreConfig = StoreConfig()
    limits: LimitsConfig = LimitsConfig()
    observability: ObservabilityConfig = ObservabilityConfig()
    admin: AdminConfig = AdminConfig()
    rounds: RoundsConfig = RoundsConfig()
    tasks: tuple[TaskConfig, ...] = Field(default=(), alias="task")

    @model_validator(mode="after")
    def _check(self) -> "ServerConfig":
        if not self.tls.insecure and not self.tls.is_complete:
            msg = "tls: give certificate, private-key and client-ca, or set insecure = true"
            raise ValueError(msg)
        if self.enrollment.is_complete and self.tls.is_complete and not self.listen.enrollment:
            msg = "enrollment under TLS needs an address of its own: set listen.enrollment"
            raise ValueError(msg)
        banded = [task.name for task in self.tasks if task.privacy.mechanism == "banded"]
        if banded and self.store.durability is not Durability.MACHINE:
            msg = (
                f"task {banded[0]}: mechanism banded needs store.durability = 'machine': a store"
                " that forgets a round would give its noise to two sums"
            )
            raise ValueError(msg)
        names = [task.name for task in self.tasks]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            msg = f"task names must differ: {', '.join(repeated)}"
            raise ValueError(msg)
        host = self.listen.http.rpartition(":")[0].strip("[]")
        if self.admin.token is None and host not in {"127.0.0.1", "::1", "localhost"}:
            msg = f"listen.http={self.listen.http} is reachable by others: set admin.token"
            raise ValueError(msg)
        return self

    @property
    def blob_url(self) -> str:
        return self.store.blobs or str((self.store.data_dir / "blobs").absolute())

    @property
    def audit_path(self) -> Path:
        return Path(self.observability.audit_log or self.store.data_dir / "audit.jsonl")


def load_config(path: Path, environment: Mapping[str, str] = os.environ) -> ServerConfig:
    """Read a configuration file.

    Raises:
        ConfigError: if the file cannot be read, is no TOML, or holds a wrong key or value.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        msg = f"{path}: {error}"
        raise ConfigError(msg) from error
    return parse_config(tree, environment)


def parse_config(tree: Mapping[str, object], environment: Mapping[str, str]) -> ServerConfig:
    """Validate a tree of settings, environment overrides applied.

    Raises:
        ConfigError: naming every wrong key, with the nearest valid one, and every wrong value.
    """
    merged: dict[str, Any] = {
        key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()
    }
    for name, text in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX):
            _override(merged, name, text)
    try:
        return ServerConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(
            "; ".join(explain(item, ServerConfig) for item in error.errors())
        ) from error


def _override(tree: dict[str, Any], name: str, text: str) -> None:
    path = [part.lower().replace("_", "-") for part in name[len(ENVIRONMENT_PREFIX) :].split("__")]
    if len(path) != 2 or not all(path):
        msg = f"{name} must have the form {ENVIRONMENT_PREFIX}SECTION__KEY"
        raise ConfigError(msg)
    try:
        value: object = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    tree.setdefault(path[0], {})[path[1]] = value
