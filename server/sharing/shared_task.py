"""A task whose rounds are shared, and the parameters of each of them."""

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Final

from aggregators.private_rules import private_sum_sensitivity
from aggregators.registry import traits_of
from privacy.charge import Charge
from security.shared_round.terms.committee import Committee
from security.shared_round.terms.parameter_facts import (
    ALL_MEMBERS,
    Checks,
    Degraded,
    ShareFormat,
)
from security.shared_round.terms.parameters import RoundParameters, RoundPlan, plan_parameters
from security.shared_round.update.bundle import MAX_PREFIX_BYTES, BundleIndex
from server.round.round_privacy import RoundPrivacy
from updates import plan_message
from updates.compression_plan import CompressionPlan

FULL_WEIGHT: Final = 8  # of a fresh update, where stale ones are admitted


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """What a round starts from."""

    version: int
    sha256: str
    dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedTask:
    """The unchanging facts of a task whose rounds are shared.

    Attributes:
        name: of the task.
        committee: its share holders.
        reporting_goal, min_contributions: as of `RoundTerms`.
        min_members: fewest updates that are opened together.
        clipping_norm: largest L2 norm of an update.
        rule, num_malicious_nodes, num_to_select: what picks updates, or combines groups.
        format, checks, degraded, fraction_bits, quorum, sketch_dim, group_size: as of `RoundPlan`.
        max_staleness: versions before the round's that updates may start from.
        holder_timeout_s, max_wait_s: in each phase, how long all holders are waited for, and how
            long enough of them.
        is_direct: whether devices hand every holder its share themselves.
    """

    name: str
    committee: Committee
    reporting_goal: int
    min_contributions: int
    min_members: int
    clipping_norm: float
    rule: str
    num_malicious_nodes: int
    num_to_select: int | None
    format: ShareFormat
    checks: Checks
    degraded: Degraded
    fraction_bits: int
    quorum: int
    sketch_dim: int
    group_size: int
    max_staleness: int
    holder_timeout_s: float
    max_wait_s: float
    is_direct: bool

    def parameters(
        self,
        base: BaseModel,
        *,
        round_number: int,
        cohort_size: int,
        compression: CompressionPlan | None = None,
        privacy: RoundPrivacy | None = None,
    ) -> RoundParameters:
        """Plan a round.

        Args:
            base: the model version that it starts from.
            round_number: its number within the task, from 1.
            cohort_size: devices that may submit.
            compression: of the round; what its map gives is what is shared.
            privacy: of the round; None: the sums are opened as they are.

        Raises:
            SharingError: if the settings fit no sound round.
        """
        most = max(self.min_members, min(self.reporting_goal, cohort_size))
        noise, sensitivity = self._noise(privacy, most)
        return plan_parameters(
            replace(
                self._plan(base, round_number, most),
                dim=base.dim if compression is None else compression.num_values,
                noise_multiplier=noise,
                sensitivity=sensitivity,
                compression_sha256=_sha256_of(compression),
            )
        )

    def _plan(self, base: BaseModel, round_number: int, most: int) -> RoundPlan:
        """Plan a round of at most so many members, dense and without noise."""
        selects = traits_of(self.rule).picks_by_distances
        return RoundPlan(
            task=self.name,
            round=round_number,
            base_version=base.version,
            model_sha256=base.sha256,
            committee_sha256=self.committee.sha256,
            threshold=self.committee.threshold,
            holders=len(self.committee.holders),
            dim=base.dim,
            clip_norm=self.clipping_norm,
            min_members=self.min_members,
            max_members=most,
            format=self.format,
            checks=self.checks,
            fraction_bits=self.fraction_bits,
            quorum=self.quorum,
            sketch_dim=self.sketch_dim if self.checks is not Checks.SUM else 0,
            expected_members=most,
            # Rules that work on group means run here, on what was opened.
            rule=self.rule if selects else ALL_MEMBERS,
            num_byzantine=self.num_malicious_nodes if selects else 0,
            num_to_select=(self.num_to_select or 0) if selects else 0,
            group_size=self.group_size,
            degraded=self.degraded,
            staleness_weights=staleness_weights(self.max_staleness),
        )

    def _noise(self, privacy: RoundPrivacy | None, most: int) -> tuple[float, float]:
        """Give the noise multiplier and the sensitivity of a sum of at most so many updates."""
        noise, sensitivity = _noise_of(privacy)
        if privacy is None:
            return noise, sensitivity
        # The rule may have been another when the round opened.
        needed = private_sum_sensitivity(
            self.rule,
            num_updates=most,
            num_byzantine=self.num_malicious_nodes,
            num_to_select=self.num_to_select,
        )
        return noise, max(sensitivity, needed)

    def check(self, *, dim: int, privacy: RoundPrivacy | None = None) -> int:
        """Plan the smallest and the largest round there can be.

        Args:
            dim: numbers that a device shares: of an update, or of what the round's map makes of it.
            privacy: of every round.

        Returns:
            Bytes of the largest payload: a sealed update, or its prefix where delivery is direct.

        Raises:
            SharingError: if one of them cannot be sound.
        """
        base = BaseModel(version=1, sha256="0" * 64, dim=dim)
        sizes = (self.min_contributions, self.reporting_goal)
        plans = [
            self.parameters(base, round_number=1, cohort_size=size, privacy=privacy)
            for size in sizes
        ]
        if self.is_direct:
            return MAX_PREFIX_BYTES
        return max(
            BundleIndex(params=plan, prefix_bytes=MAX_PREFIX_BYTES).total_bytes for plan in plans
        )


def _noise_of(privacy: RoundPrivacy | None) -> tuple[float, float]:
    """Give the noise multiplier and the sensitivity of a round's sum; no noise without privacy."""
    if privacy is None:
        return 0.0, 1.0
    return Charge.from_text(privacy.charge).noise_multiplier, privacy.sensitivity


def _sha256_of(compression: CompressionPlan | None) -> bytes:
    """Return what binds all parties to one map; empty where there is none."""
    if compression is None:
        return b""
    return hashlib.sha256(plan_message.to_bytes(compression)).digest()


def staleness_weights(max_staleness: int) -> tuple[int, ...]:
    """Weigh updates trained 0, 1, ... versions before the base: 8 / sqrt(1 + s), rounded.

    References: Nguyen et al. (2022), arXiv:2106.06639, section 5 (FedBuff).
    """
    if max_staleness == 0:
        return (1,)
    return tuple(
        max(1, round(FULL_WEIGHT / math.sqrt(1 + staleness)))
        for staleness in range(max_staleness + 1)
    )
