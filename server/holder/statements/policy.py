"""What a holder demands of a round before it takes part in it."""

from typing import Final

from security.secret_sharing.threshold import Threshold
from security.shared_round.terms.committee import Committee
from security.shared_round.terms.least_protection import LeastProtection, disagreement, shortfall
from security.shared_round.terms.parameters import RoundParameters
from server.config.holder_config import PolicyConfig
from server.errors import MalformedRequest, WeakerThanPolicy, WrongRoundParameters

# A request that shows every holder's openings must fit into one message.
MAX_EVIDENCE_BYTES: Final = 56 << 20


def check_policy(params: RoundParameters, committee: Committee, policy: PolicyConfig) -> None:
    """Refuse a round that is not of this committee, or protects less than the holder demands.

    Raises:
        WrongRoundParameters: if the round names another committee, threshold or number of holders.
        WeakerThanPolicy: if it demands less than the policy.
        MalformedRequest: if it is too large for this holder.
    """
    another = disagreement(params, committee)
    if another is not None:
        raise WrongRoundParameters(another)
    weaker = shortfall(params, _least(params, policy))
    if weaker is None and params.is_checked and params.wrap_tests > policy.max_wrap_tests:
        weaker = f"wrap_tests={params.wrap_tests} must be at most {policy.max_wrap_tests}"
    if weaker is not None:
        msg = f"{weaker} for this holder"
        raise WeakerThanPolicy(msg)
    _check_sizes(params, policy)


def _least(params: RoundParameters, policy: PolicyConfig) -> LeastProtection:
    return LeastProtection(
        threshold=policy.min_threshold,
        quorum=least_quorum(params.scheme, policy),
        members=policy.min_members,
        group_size=policy.min_group_size,
        mask_scale=policy.min_mask_scale,
        wrap_tests=policy.min_wrap_tests,
        sketch_dim=policy.min_sketch_dim,
        noise_multiplier=policy.min_noise_multiplier,
        checks=frozenset(policy.checks),
        degraded=frozenset(policy.degraded),
    )


def least_quorum(scheme: Threshold, policy: PolicyConfig) -> int:
    """Count votes that bind. Two quorums of ceil((n + t) / 2) share t holders, one of them honest.

    Where every holder is assumed to follow the protocol it is enough that two quorums meet, that
    a quorum can open a sum, and that the holders outside of it cannot.
    """
    if policy.assume_honest_holders:
        n, t = scheme.holders, scheme.threshold
        return max(t, n - t + 1, n // 2 + 1)
    return scheme.default_quorum


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
