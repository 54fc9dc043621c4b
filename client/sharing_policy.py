"""Which shared rounds a device takes part in. Needs the extra `fedagg[shared]`."""

import hashlib
from typing import Final

from client.errors import ProtocolError
from client.messages import Assignment
from client.round_encoding import policy_refusal
from client.sharing_config import RequiredChecks, SharingConfig
from security.shared_round import bounds
from security.shared_round.committee import Committee
from security.shared_round.parameters import Checks, Degraded, RoundParameters
from updates.plan_message import to_bytes

_STRENGTH: Final[dict[Checks, int]] = {Checks.SUM_ONLY: 0, Checks.NORM: 1, Checks.DISTANCES: 2}
_LEAST_STRENGTH: Final[dict[RequiredChecks, int]] = {
    RequiredChecks.SUM: 0,
    RequiredChecks.NORM: 1,
    RequiredChecks.DISTANCES: 2,
}
# Updates in a group of a degraded round whose parameters name no size.
_DEGRADED_GROUP: Final = 8


def check_agreement(params: RoundParameters, assignment: Assignment) -> None:
    """Refuse parameters of another round than the one that the device was assigned to.

    Raises:
        ProtocolError: if a fact of the round, or its norm bound, differs from the assignment's.
    """
    pairs = (
        ("task", params.task, assignment.task),
        ("round", params.round, assignment.round),
        ("base_version", params.base_version, assignment.model_version),
        ("model_sha256", params.model_sha256, assignment.model_sha256),
        ("dim", params.dim, assignment.compression.num_values),
        ("compression_sha256", params.compression_sha256.hex(), _compression_sha256(assignment)),
    )
    for name, shared, assigned in pairs:
        if shared != assigned:
            raise ProtocolError(
                f"{name}={shared!r} of the round's parameters is not the assignment's {assigned!r}"
            )
    clip_norm = assignment.plan.clipping_norm
    if not clip_norm > 0:
        raise ProtocolError("a shared round needs a clipping_norm > 0, got 0")
    expected = bounds.norm_bound(clip_norm, fraction_bits=params.fraction_bits, dim=params.dim)
    if params.norm_bound != expected:
        raise ProtocolError(
            f"norm_bound={params.norm_bound} does not follow from clipping_norm={clip_norm}, "
            f"which gives {expected}"
        )


def _compression_sha256(assignment: Assignment) -> str:
    """Name the map that the device was told to apply; empty without one."""
    plan = assignment.plan.compression
    return "" if plan is None else hashlib.sha256(to_bytes(plan)).hexdigest()


def check_policy(params: RoundParameters, policy: SharingConfig, committee: Committee) -> None:
    """Refuse a round that protects its updates less than the device asks.

    Raises:
        PreconditionError: for another committee, a lower threshold or quorum, smaller sums, less
            noise, or weaker checks, also where only the degraded mode would skip them.
    """
    if params.committee_sha256 != committee.sha256:
        raise policy_refusal("the round's share holders are not the configured committee")
    # These follow from the committee; a round that says otherwise cannot be opened, or too easily.
    agreed = (committee.threshold, len(committee.holders))
    if (params.threshold, params.holders) != agreed:
        raise policy_refusal(
            f"(threshold, holders)={(params.threshold, params.holders)} is not the committee's "
            f"{agreed}"
        )
    least_quorum = policy.min_quorum
    if least_quorum is None:
        least_quorum = params.scheme.default_quorum
    for name, value, least in (
        ("threshold", params.threshold, policy.min_threshold),
        ("quorum", params.quorum, least_quorum),
        ("updates in a sum", _least_members(params), policy.min_members),
        *_check_floors(params, policy),
    ):
        if value < least:
            raise policy_refusal(f"{name} of the round must be at least {least}, got {value}")
    if not params.has_noise_multiplier(policy.min_noise_multiplier):
        raise policy_refusal(
            f"noise of the round must be at least {policy.min_noise_multiplier} norm bounds against"
            f" {params.threshold - 1} dealers, got noise_stddev={params.noise_stddev} of"
            f" {params.noise_dealers} dealers"
        )
    required = policy.require_checks
    if _STRENGTH[params.checks] < _LEAST_STRENGTH[required]:
        raise policy_refusal(
            f"checks={params.checks.name} are weaker than require_checks={required.value!r}"
        )
    if params.degraded is Degraded.UNCHECKED and required is not RequiredChecks.SUM:
        raise policy_refusal(
            f"degraded={params.degraded.name} may skip what require_checks={required.value!r} asks"
        )


def _check_floors(
    params: RoundParameters, policy: SharingConfig
) -> tuple[tuple[str, int, int], ...]:
    """List what makes the checks of a round: name, value, least value."""
    if not params.is_checked:
        return ()
    return (
        ("mask_scale", params.mask_scale, policy.min_mask_scale),
        ("wrap_tests", params.wrap_tests, policy.min_wrap_tests),
        ("sketch_dim", params.sketch_dim, policy.min_sketch_dim),
    )


def _least_members(params: RoundParameters) -> int:
    """Return how many updates the smallest sum holds that the round may open."""
    sizes = [params.min_members]
    if params.group_size:
        sizes.append(params.group_size)
    elif params.degraded is Degraded.GROUPED:
        sizes.append(_DEGRADED_GROUP)
    return min(sizes)
