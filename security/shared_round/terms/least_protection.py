"""The least protection that a device or a share holder takes part in a shared round for."""

from collections.abc import Iterable
from dataclasses import dataclass

from security.shared_round.terms.committee import Committee
from security.shared_round.terms.parameter_facts import (
    DEGRADED_GROUP_SIZE,
    LEAST_MASK_SCALE,
    LEAST_MEMBERS,
    LEAST_SKETCH_DIM,
    LEAST_WRAP_TESTS,
    Checks,
    Degraded,
)
from security.shared_round.terms.parameters import RoundParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastProtection:
    """Floors under the parameters of a round.

    Attributes:
        threshold: holders that can open a sum.
        quorum: holders that must agree on what is opened; 0: whatever the round says.
        members: updates that the sums of a round hold together.
        group_size: updates in each sum, where there are several.
        mask_scale, wrap_tests, sketch_dim: of a round with checks.
        noise_multiplier: noise in a sum that threshold - 1 dealers do not know, in norm bounds.
        checks: the levels that will do.
        degraded: the modes that may be named.
    """

    threshold: int = 2
    quorum: int = 0
    members: int = LEAST_MEMBERS
    group_size: int = LEAST_MEMBERS
    mask_scale: int = LEAST_MASK_SCALE
    wrap_tests: int = LEAST_WRAP_TESTS
    sketch_dim: int = LEAST_SKETCH_DIM
    noise_multiplier: float = 0.0
    checks: frozenset[Checks] = frozenset(Checks)
    degraded: frozenset[Degraded] = frozenset(Degraded)


def disagreement(params: RoundParameters, committee: Committee) -> str | None:
    """Tell why a round is not one of a committee; None: it is.

    Threshold and number of holders follow from the committee: a round that says otherwise cannot be
    opened, or too easily.
    """
    said = (params.committee_sha256, params.threshold, params.holders)
    agreed = (committee.sha256, committee.threshold, len(committee.holders))
    if said == agreed:
        return None
    return (
        f"committee_sha256, threshold={params.threshold} and holders={params.holders} of the round"
        f" must be those of the configured committee, {agreed[1]} of {agreed[2]}"
    )


def shortfall(params: RoundParameters, least: LeastProtection) -> str | None:
    """Tell what protects a round's updates less than it has to; None: nothing."""
    for name, value, floor in _floors(params, least):
        if value < floor:
            return f"{name}={value} of the round must be at least {floor}"
    if not params.has_noise_multiplier(least.noise_multiplier):
        return (
            f"noise_dealers={params.noise_dealers} of noise_stddev={params.noise_stddev} must leave"
            f" at least {least.noise_multiplier} norm bounds of noise against"
            f" {params.threshold - 1} of them"
        )
    if params.checks not in least.checks:
        return f"checks={params.checks} of the round must be {_one_of(Checks, least.checks)}"
    if params.degraded not in least.degraded:
        return (
            f"degraded={params.degraded} of the round must be {_one_of(Degraded, least.degraded)}"
        )
    return None


def opened_group_size(params: RoundParameters) -> int:
    """Tell how few updates one of several sums may hold; 0: there is only ever one sum."""
    if params.group_size or params.degraded is not Degraded.GROUPED:
        return params.group_size
    return DEGRADED_GROUP_SIZE


def _floors(params: RoundParameters, least: LeastProtection) -> list[tuple[str, int, int]]:
    floors = [
        ("threshold", params.threshold, least.threshold),
        ("quorum", params.quorum, least.quorum),
        ("min_members", params.min_members, least.members),
    ]
    group_size = opened_group_size(params)
    if group_size:
        floors.append(("group_size", group_size, least.group_size))
    if params.is_checked:
        floors += [
            ("mask_scale", params.mask_scale, least.mask_scale),
            ("wrap_tests", params.wrap_tests, least.wrap_tests),
            ("sketch_dim", params.sketch_dim, least.sketch_dim),
        ]
    return floors


def _one_of(every: Iterable[str], allowed: Iterable[str]) -> str:
    kept = set(allowed)
    return " or ".join(word for word in every if word in kept)
