"""A coordinator's configuration: one frozen tree."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from security.certificates.enrollment import MIN_KEY_BYTES
from server.config.durability import Durability
from server.config.formats import EMBEDDED, Address, OptionalAddress, OtlpEndpoint, StoreUrl
from server.config.section import Section
from server.config.task_config import TaskConfig


class ListenConfig(Section):
    """Where the coordinator answers."""

    grpc: Address = Field(default="127.0.0.1:50051", description="host:port of the device API")
    enrollment: OptionalAddress = Field(
        default="",
        description="host:port of Enrollment under TLS, where devices have no certificate yet",
    )
    http: Address = Field(default="127.0.0.1:8080", description="host:port of /health and /api/v1")
    metrics: Address = Field(default="127.0.0.1:9090", description="host:port of /metrics")
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
    def is_begun(self) -> bool:
        """Whether any of the three files is given."""
        return {self.certificate, self.private_key, self.client_ca} != {None}

    @property
    def is_complete(self) -> bool:
        """Whether all three files are given: TLS is on."""
        return None not in {self.certificate, self.private_key, self.client_ca}


class EnrollmentConfig(Section):
    """Certificate authority for new devices. Off unless the three are given."""

    ca_certificate: Path | None = None
    ca_private_key: Path | None = None
    token_key: SecretStr | None = Field(
        default=None,
        min_length=MIN_KEY_BYTES,
        description="key that enrollment tokens are signed with",
    )
    certificate_days: int = Field(default=90, ge=1, le=825)

    @property
    def is_begun(self) -> bool:
        """Whether any of the three is given."""
        return {self.ca_certificate, self.ca_private_key, self.token_key} != {None}

    @property
    def is_complete(self) -> bool:
        """Whether all three are given: devices can enroll."""
        return None not in {self.ca_certificate, self.ca_private_key, self.token_key}


class StoreConfig(Section):
    """Where control state and payloads live."""

    url: StoreUrl = Field(
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
        default=7 * 86_400,
        ge=60,
        le=3650 * 86_400,
        description="how long a finished round still answers retries",
    )


class LimitsConfig(Section):
    """Bounds on what peers may cost. They change how fast, never what comes out."""

    calls_in_flight: int = Field(
        default=20_000,
        ge=100,
        le=1_000_000,
        description="calls of all kinds at once; more: RESOURCE_EXHAUSTED",
    )
    check_ins_held: int = Field(
        default=10_000,
        ge=0,
        le=10_000_000,
        description="check-ins that may wait for a decision; more: no waiting",
    )
    inline_in_flight: int = Field(
        default=8192,
        ge=1,
        le=1_000_000,
        description="inline updates being stored at once; more: OVERLOADED",
    )
    uploads_in_flight: int = Field(
        default=8, ge=1, le=1024, description="chunked uploads read at the same time"
    )
    upload_stall_s: float = Field(
        default=20, ge=1, le=3600, description="a chunked upload silent for this long is ended"
    )
    upload_min_bytes_per_s: int = Field(
        default=32 << 10,
        ge=1,
        le=1 << 40,
        description="a chunked upload slower than this over all is ended",
    )
    uploads_queued: int = Field(
        default=1024,
        ge=0,
        le=1_000_000,
        description="chunked uploads waiting beyond those; more: OVERLOADED",
    )
    inline_max_bytes: int = Field(
        default=64 * 1024, ge=1024, le=1 << 20, description="payloads up to this are kept in Redis"
    )
    model_cache_bytes: int = Field(
        default=64 << 20, ge=0, le=1 << 50, description="models kept in memory"
    )


class EnginesConfig(Section):
    """Where engines other than local compute. They change how fast, never what comes out."""

    torch_device: str = Field(
        default="", description="of engine torch, such as cuda:1; empty: cuda if there is one"
    )
    ray_address: str = Field(
        default="",
        description="cluster of engine ray, host:port; empty: one of each process's own here",
    )
    ray_workers: int = Field(
        default=2, ge=1, le=1024, description="processes that engine ray cuts a round for"
    )


class ObservabilityConfig(Section):
    """Traces, logs and audit."""

    otlp_endpoint: OtlpEndpoint = Field(
        default="",
        description="OTLP/gRPC collector, host:port or http(s)://host:port; empty: no traces",
    )
    trace_sample_ratio: float = Field(default=1.0, ge=0, le=1)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    audit_log: str = Field(default="", description="file; empty: audit.jsonl in data-dir")


class AdminConfig(Section):
    """The admin API under /api/v1."""

    token: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="bearer token; required where listen.http is not loopback",
    )


class RoundsConfig(Section):
    """The loop that drives rounds."""

    lease_ttl_s: float = Field(
        default=10, ge=0.5, le=300, description="a dead leader is replaced after this"
    )
    poll_interval_s: float = Field(default=0.5, gt=0, le=60)
    check_in_ttl_s: float = Field(
        default=30, ge=1, le=86_400, description="an offer not repeated for this long is void"
    )


class ServerConfig(Section):
    """Everything a coordinator is told."""

    listen: ListenConfig = ListenConfig()
    tls: TlsConfig = TlsConfig()
    enrollment: EnrollmentConfig = EnrollmentConfig()
    store: StoreConfig = StoreConfig()
    limits: LimitsConfig = LimitsConfig()
    engines: EnginesConfig = EnginesConfig()
    observability: ObservabilityConfig = ObservabilityConfig()
    admin: AdminConfig = AdminConfig()
    rounds: RoundsConfig = RoundsConfig()
    tasks: tuple[TaskConfig, ...] = Field(default=(), alias="task")

    @property
    def blob_url(self) -> str:
        """URL of the blob store; without one in the settings, a folder beside the data."""
        return self.store.blobs or str((self.store.data_dir / "blobs").absolute())

    @property
    def audit_path(self) -> Path:
        """File of the audit log; without one in the settings, beside the data."""
        return Path(self.observability.audit_log or self.store.data_dir / "audit.jsonl")
