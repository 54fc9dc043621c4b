"""Settings of tasks whose rounds are shared, and what makes no sense among them."""

from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from pydantic import Field

from server.config.section import Section

if TYPE_CHECKING:
    from server.config.task_config import TaskConfig

# Rules that shared rounds apply to opened distances. Others work on sums of groups.
SELECTING_RULES: Final = frozenset({"multi-krum", "distance-outliers"})
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
    format: Literal["shamir-seeded", "cnf-seeded"] = Field(
        default="shamir-seeded", description="cnf-seeded: a third of the upload, more work"
    )
    fraction_bits: int = Field(default=20, ge=1, le=30, description="a value is a multiple of 2^-f")
    checks: Literal["sum", "norm", "distances"] = Field(
        default="norm", description="what the holders open before the sum; rules need distances"
    )
    sketch_dim: int = Field(default=1024, ge=64, le=1 << 16, description="a power of two")
    group_size: int = Field(
        default=0, ge=0, le=10_000, description="updates in each opened sum; 0: one sum of all"
    )
    min_members: int = Field(
        default=0,
        ge=0,
        description="fewest updates that are opened together; 0: 60 % of min-contributions",
    )
    degraded: Literal["wait", "grouped", "unchecked", "abort"] = Field(
        default="wait", description="what to do where too few holders can open the checks"
    )
    quorum: int = Field(default=0, ge=0, le=7, description="votes that bind; 0: the safe number")
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


def sharing_problem(task: "TaskConfig") -> str | None:
    """Why the task cannot be shared, as far as its own settings tell."""
    sharing, rule = task.sharing, task.aggregation.rule
    selects = rule in SELECTING_RULES
    problems = (
        (sharing.committee is None, "sharing.committee must name the committee's file"),
        (
            task.plan.clipping_norm <= 0,
            "plan.clipping-norm must be > 0: it bounds what one device can do to the sum",
        ),
        (
            task.aggregation.clipping_norm is not None,
            "aggregation.clipping-norm cannot apply to updates nobody sees: set plan.clipping-norm",
        ),
        (
            sharing.group_size == 0 and rule != "mean" and not selects,
            f"aggregation.rule={rule!r} needs single updates or groups: set sharing.group-size",
        ),
        (rule == "krum", "aggregation.rule='krum' would open a single update"),
        (
            selects and sharing.group_size == 0 and sharing.checks != "distances",
            f"aggregation.rule={rule!r} picks by distances: set sharing.checks = 'distances'",
        ),
        (
            sharing.checks == "distances" and (not selects or sharing.group_size > 0),
            "sharing.checks='distances' is for multi-krum and distance-outliers without groups",
        ),
        (
            sharing.sketch_dim & (sharing.sketch_dim - 1) != 0,
            f"sharing.sketch-dim={sharing.sketch_dim} must be a power of two",
        ),
        (
            task.min_members > task.quorum,
            f"sharing.min-members={sharing.min_members} must not exceed min-contributions, from 2",
        ),
        (
            (sharing.holders_certificate is None) is not (sharing.holders_private_key is None),
            "sharing.holders-certificate and sharing.holders-private-key go together",
        ),
        (
            sharing.holders_certificate is not None and sharing.holders_ca is None,
            "sharing.holders-certificate needs sharing.holders-ca",
        ),
        (
            sharing.max_wait_s < sharing.holder_timeout_s,
            "sharing.max-wait-s must not be below sharing.holder-timeout-s",
        ),
    )
    return next((why for failed, why in problems if failed), None)
