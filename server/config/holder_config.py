"""A share holder's configuration: one frozen tree. Paths are relative to the folder it runs in."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from protos.wire import MAX_DIM
from security.secret_sharing.threshold import MAX_HOLDERS, MIN_THRESHOLD
from security.shared_round.terms.parameter_facts import (
    DEGRADED_GROUP_SIZE,
    LEAST_MASK_SCALE,
    LEAST_MEMBERS,
    LEAST_SKETCH_DIM,
    LEAST_WRAP_TESTS,
    Checks,
    Degraded,
)
from server.config.durability import Durability
from server.config.formats import Address, OptionalAddress
from server.config.section import Section


class HolderSection(Section):
    """Who the holder is and where its state lives."""

    index: int = Field(ge=1, le=MAX_HOLDERS, description="its number in the committee")
    committee: Path = Field(description="the committee, from `fedagg share-holder committee`")
    keys: Path = Field(description="the holder's secrets, from `fedagg share-holder keys`")
    device_ca: Path = Field(description="PEM, authorities whose certificates devices sign with")
    data_dir: Path = Field(description="folder for shares and statements, of this holder alone")
    durability: Durability = Field(
        default=Durability.MACHINE, description="what a receipt and a statement survive"
    )


class HolderListenConfig(Section):
    """Where the holder answers. Empty: not at all."""

    grpc: Address = Field(default="127.0.0.1:50061", description="host:port of ShareHolder")
    http: OptionalAddress = Field(default="", description="host:port of /health and /ready")
    metrics: OptionalAddress = Field(default="", description="host:port of /metrics")


class HolderTlsConfig(Section):
    """TLS of the holder's port. What travels is sealed and signed: TLS hides who talks when."""

    certificate: Path | None = None
    private_key: Path | None = None
    client_ca: Path | None = Field(
        default=None,
        description="authority whose certificates callers must present; none: everyone is believed",
    )
    coordinators: tuple[str, ...] = Field(
        default=(),
        description="common names of those that may call everything; others hand in their share",
    )
    insecure: bool = Field(default=False, description="serve without TLS")

    @property
    def has_certificate(self) -> bool:
        """Whether the port has a certificate of its own, with its key."""
        return self.certificate is not None and self.private_key is not None

    @property
    def proves_callers(self) -> bool:
        """True where TLS shows who calls."""
        return self.client_ca is not None


class PolicyConfig(Section):
    """The least protection that this holder lends itself to. A weaker round is refused."""

    min_threshold: int = Field(default=MIN_THRESHOLD, ge=MIN_THRESHOLD, le=MAX_HOLDERS)
    min_members: int = Field(
        default=8, ge=LEAST_MEMBERS, le=100_000, description="fewest updates in a sum"
    )
    min_group_size: int = Field(
        default=DEGRADED_GROUP_SIZE,
        ge=LEAST_MEMBERS,
        le=100_000,
        description="fewest updates in each sum of a grouped round",
    )
    max_members: int = Field(default=10_000, ge=2, le=100_000)
    max_dim: int = Field(default=100_000_000, ge=1, le=MAX_DIM, description="elements of an update")
    checks: tuple[Checks, ...] = Field(
        default=tuple(Checks),
        description="levels this holder takes part in; distances tell holders how updates lie",
    )
    degraded: tuple[Degraded, ...] = Field(
        default=(Degraded.WAIT, Degraded.ABORT, Degraded.GROUPED),
        description="modes a round may name",
    )
    max_wrap_tests: int = Field(
        default=64,
        ge=1,
        le=1 << 16,
        description="noised projections of a group of updates that are opened",
    )
    min_wrap_tests: int = Field(
        default=LEAST_WRAP_TESTS,
        ge=16,
        le=1 << 16,
        description="as many find an update that goes around the field",
    )
    min_mask_scale: int = Field(
        default=LEAST_MASK_SCALE,
        ge=1,
        le=1 << 16,
        description="their noise, in units of an update's norm bound",
    )
    min_sketch_dim: int = Field(
        default=LEAST_SKETCH_DIM,
        ge=1,
        le=1 << 16,
        description="of the sketches in which distances and tests are made",
    )
    min_noise_multiplier: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="noise in a sum that threshold - 1 dealers do not know, in norm bounds",
    )
    assume_honest_holders: bool = Field(
        default=False,
        description="accept a quorum in which two need not share an honest holder",
    )


class HolderLimitsConfig(Section):
    """Bounds on what peers may cost. They change how fast, never what comes out."""

    streams_in_flight: int = Field(
        default=8, ge=1, le=1024, description="StoreShare streams read at the same time"
    )
    streams_queued: int = Field(
        default=1024,
        ge=0,
        le=1_000_000,
        description="streams waiting beyond those; more: OVERLOADED",
    )
    stream_stall_s: float = Field(
        default=20, gt=0, le=3600, description="a stream silent for this long is ended"
    )
    stream_min_bytes_per_s: int = Field(
        default=32 << 10,
        ge=1,
        le=1 << 40,
        description="a stream slower than this over all is ended",
    )
    open_rounds: int = Field(
        default=64, ge=1, le=1_000_000, description="rounds not purged yet; more: OVERLOADED"
    )
    retention_s: float = Field(
        default=7 * 86_400,
        ge=60,
        le=3650 * 86_400,
        description="a round this old is purged though nobody asks",
    )
    inline_max_bytes: int = Field(
        default=64 << 10, ge=0, le=1 << 20, description="bodies up to this are kept in the database"
    )
    threads: int = Field(default=2, ge=1, le=64, description="shares that are checked at once")


class HolderLogConfig(Section):
    """What is logged."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class HolderConfig(Section):
    """Everything a share holder is told."""

    holder: HolderSection
    listen: HolderListenConfig = HolderListenConfig()
    tls: HolderTlsConfig = HolderTlsConfig()
    policy: PolicyConfig = PolicyConfig()
    limits: HolderLimitsConfig = HolderLimitsConfig()
    log: HolderLogConfig = HolderLogConfig()
