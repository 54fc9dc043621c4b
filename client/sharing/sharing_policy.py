"""Which shared rounds a device takes part in. Needs the extra `fedagg[shared]`."""

import hashlib

from client.config import SharingConfig
from client.errors import ProtocolError
from client.round_encoding import policy_refusal
from client.transport.messages import Assignment
from security.shared_round.terms import bounds
from security.shared_round.terms.committee import Committee
from security.shared_round.terms.least_protection import LeastProtection, disagreement, shortfall
from security.shared_round.terms.parameter_facts import Checks, Degraded
from security.shared_round.terms.parameters import RoundParameters
from updates.plan_message import to_bytes


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
    problem = disagreement(params, committee) or shortfall(params, _least(params, policy))
    if problem is not None:
        raise policy_refusal(problem)


def _least(params: RoundParameters, policy: SharingConfig) -> LeastProtection:
    required = policy.require_checks
    skips = frozenset({Degraded.UNCHECKED}) if required is not Checks.SUM else frozenset()
    return LeastProtection(
        threshold=policy.min_threshold,
        quorum=params.scheme.default_quorum if policy.min_quorum is None else policy.min_quorum,
        members=policy.min_members,
        group_size=policy.min_members,
        mask_scale=policy.min_mask_scale,
        wrap_tests=policy.min_wrap_tests,
        sketch_dim=policy.min_sketch_dim,
        noise_multiplier=policy.min_noise_multiplier,
        checks=frozenset(level for level in Checks if level.includes(required)),
        degraded=frozenset(Degraded) - skips,
    )
