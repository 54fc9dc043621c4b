"""Settings of tasks whose rounds are shared."""

from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from security.secret_sharing.threshold import MAX_HOLDERS
from security.shared_round.terms.parameter_facts import (
    LEAST_SKETCH_DIM,
    Checks,
    Degraded,
    ShareFormat,
)
from server.config.section import Section

MIN_MEMBERS_SHARE: Final = 0.6  # of the contributions that a round is content with


class SharingConfig(Section):
    """How updates are shared among holders; for tasks of mode "shared" only."""

    committee: Path | None = Field(
        default=None, description="JSON file that names the share holders; required"
    )
    holders_ca: Path | None = Field(
        default=None, description="authority of the holders' certificates; none: without TLS"
    )
    holders_certificate: Path | None = Field(
        default=None, description="the coordinator's certificate, for holders that ask for one"
    )
    holders_private_key: Path | None = Field(default=None, description="key of that certificate")
    delivery: Literal["relayed", "direct"] = Field(
        default="relayed", description="direct: devices hand every holder its share themselves"
    )
    format: ShareFormat = Field(
        default=ShareFormat.SHAMIR_SEEDED,
        description="cnf-seeded: a third of the upload, more work",
    )
    fraction_bits: int = Field(default=20, ge=1, le=30, description="a value is a multiple of 2^-f")
    checks: Checks = Field(
        default=Checks.NORM,
        description="what the holders open before the sum; rules need distances",
    )
    sketch_dim: int = Field(
        default=LEAST_SKETCH_DIM, ge=64, le=1 << 16, description="a power of two"
    )
    group_size: int = Field(
        default=0, ge=0, le=10_000, description="updates in each opened sum; 0: one sum of all"
    )
    min_members: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="fewest updates that are opened together; 0: 60 % of min-contributions",
    )
    degraded: Degraded = Field(
        default=Degraded.WAIT, description="what to do where too few holders can open the checks"
    )
    quorum: int = Field(
        default=0, ge=0, le=MAX_HOLDERS, description="votes that bind; 0: the safe number"
    )
    holder_timeout_s: float = Field(
        default=60,
        gt=0,
        le=86_400,
        description="in each phase, how long all holders are waited for",
    )
    max_wait_s: float = Field(
        default=600,
        gt=0,
        le=7 * 86_400,
        description="in each phase, how long enough are waited for",
    )
    max_staleness: int = Field(
        default=0, ge=0, le=16, description="updates from as many versions before are admitted"
    )
