"""What a holder demands of a round before it takes part in it."""

from typing import Final

from aggregators.shared_selection import DEGRADED_GROUP_SIZE
from security.secret_sharing.threshold import Threshold
from security.shared_round.committee import Committee
from security.shared_round.parameters import Checks, Degraded, RoundParameters
from server.config.holder_config import CheckLevel, DegradedMode, PolicyConfig
from server.errors import MalformedRequest, WeakerThanPolicy, WrongRoundParameters

# A request that shows every holder's openings must fit into one message.
MAX_EVIDENCE_BYTES: Final = 56 << 20

_LEVELS: Final = {
    Checks.SUM_ONLY: CheckLevel.SUM,
    Checks.NORM: CheckLevel.NORM,
    Checks.DISTANCES: CheckLevel.DISTANCES,
}
_MODES: Final = {
    Degraded.WAIT: DegradedMode.WAIT,
    Degraded.ABORT: DegradedMode.ABORT,
    Degraded.GROUPED: DegradedMode.GROUPED,
    Degraded.UNCHECKED: DegradedMode.UNCHECKED,
}


def check_policy(params: RoundParameters, committee: Committee, policy: PolicyConfig) -> None:
    """Refuse a round that is not of this committee, or protects less than the holder demands.

    Raises:
        WrongRoundParameters: if the round names another committee, threshold or number of holders.
        WeakerThanPolicy: if it demands less than the policy.
        MalformedRequest: if it is too large for this holder.
    """
    ours = (committee.sha256, committee.threshold, len(committee.holders))
    if (params.committee_sha256, params.threshold, params.holders) != ours:
        msg = (
            f"committee_sha256, threshold={params.threshold} and holders={params.holders} must be "
            f"those of this holder's committee: {ours[1]} of {ours[2]}"
        )
        raise WrongRoundParameters(msg)
    _at_least("threshold", params.threshold, policy.min_threshold)
    _at_least("quorum", params.quorum, least_quorum(params.scheme, policy))
    _at_least("min_members", params.min_members, policy.min_members)
    _check_modes(params, policy)
    if not params.has_noise_multiplier(policy.min_noise_multiplier):
        msg = (
            f"noise_dealers={params.noise_dealers} of noise_stddev={params.noise_stddev} must leave"
            f" at least {policy.min_noise_multiplier} norm bounds of noise against"
            f" {params.threshold - 1} of them"
        )
        raise WeakerThanPolicy(msg)
    if params.is_checked:
        _at_least("mask_scale", params.mask_scale, policy.min_mask_scale)
        _at_least("wrap_tests", params.wrap_tests, policy.min_wrap_tests)
        _at_most("wrap_tests", params.wrap_tests, policy.max_wrap_tests)
        _at_least("sketch_dim", params.sketch_dim, policy.min_sketch_dim)
    _check_sizes(params, policy)


def least_quorum(scheme: Threshold, policy: PolicyConfig) -> int:
    """Votes that bind. Two quorums of ceil((n + t) / 2) share t holders, one of them honest.

    Where every holder is assumed to follow the protocol it is enough that two quorums meet, that
    a quorum can open a sum, and that the holders outside of it cannot.
    """
    if policy.assume_honest_holders:
        n, t = scheme.holders, scheme.threshold
        return max(t, n - t + 1, n // 2 + 1)
    return scheme.default_quorum


def _check_modes(params: RoundParameters, policy: PolicyConfig) -> None:
    if _LEVELS[params.checks] not in policy.checks:
        msg = f"checks={params.checks.name} must be one of {[c.value for c in policy.checks]}"
        raise WeakerThanPolicy(msg)
    if _MODES[params.degraded] not in policy.degraded:
        msg = f"degraded={params.degraded.name} must be one of {[d.value for d in policy.degraded]}"
        raise WeakerThanPolicy(msg)
    if params.group_size:
        _at_least("group_size", params.group_size, policy.min_group_size)
    elif params.degraded is Degraded.GROUPED:
        _at_least("group_size", DEGRADED_GROUP_SIZE, policy.min_group_size)


def _check_sizes(params: RoundParameters, policy: PolicyConfig) -> None:
    for name, value, most in (
        ("dim", params.dim, policy.max_dim),
        ("max_members", params.max_members, policy.max_members),
    ):
        if value > most:
            msg = f"{name}={value} must be at most {most} for this holder"
            raise MalformedRequest(msg)
    pairs = params.max_members * (params.max_members - 1) // 2 if params.has_distances else 0
    evidence_bytes = 8 * params.holders * pairs
    if evidence_bytes > MAX_EVIDENCE_BYTES:
        msg = (
            f"max_members={params.max_members} with distances makes {evidence_bytes} bytes of "
            f"openings, must be at most {MAX_EVIDENCE_BYTES}"
        )
        raise MalformedRequest(msg)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        msg = f"{name}={value} must be at least {least} for this holder"
        raise WeakerThanPolicy(msg)


def _at_most(name: str, value: int, most: int) -> None:
    if value > most:
        msg = f"{name}={value} must be at most {most} for this holder"
        raise WeakerThanPolicy(msg)
