"""Which updates a shared round sums: derived by every share holder from the same verdict."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.registry import RULES, make_pick, rules_that
from security.shared_round.opening.coins import Coin
from security.shared_round.opening.verdicts import Verdict
from security.shared_round.terms.member_set import Selection, SelectionMode, may_select
from security.shared_round.terms.parameter_facts import DEGRADED_GROUP_SIZE
from security.shared_round.terms.parameters import RoundParameters

_GROUPS_USE: Final = "sum groups"


def select(
    params: RoundParameters,
    coin: Coin,
    verdict: Verdict,
    *,
    set_sha256: bytes,
    mode: SelectionMode = SelectionMode.CHECKED,
) -> Selection:
    """Derive the sums that a round opens.

    In mode CHECKED the round's rule picks among the members that passed: a linear one takes all of
    them, others go by the opened distances. What is picked makes one sum,
    or, with a group size s, random groups of s to 2s - 1. Degraded modes take all that passed.

    Args:
        params: the round.
        coin: of the frozen set.
        verdict: without suspects.
        set_sha256: the frozen set.
        mode: how the verdict came about.

    Raises:
        TooFewUpdatesError: if fewer than `min_members` passed or are picked, or too few for the
            rule or for one group.
        AggregationError: if the rule cannot be used on shares, suspects are left, or the
            parameters do not allow the mode.

    Guarantees:
        The same selection for everybody who has the same verdict and coin. Of equal scores the
        member that comes first in the set is taken.

    Cost: O(m^2 log m) for m members.
    """
    if verdict.suspects:
        message = f"suspects={len(verdict.suspects)} must be cleared or blamed first"
        raise AggregationError(message)
    passed = verdict.passed
    _require_members(params, "passed the checks", len(passed))
    if mode is SelectionMode.CHECKED:
        picked = _picked(params, verdict)
        size = params.group_size
    else:
        _require_allowed(params, mode)
        picked = list(passed)
        size = params.group_size
        if mode is SelectionMode.DEGRADED_GROUPED:
            size = size or DEGRADED_GROUP_SIZE
    _require_members(params, "were picked", len(picked))
    sums = [tuple(picked)] if size == 0 else _grouped(coin, picked, size)
    return Selection(set_sha256=set_sha256, mode=mode, sums=tuple(sums))


def check_rule(rule: str) -> None:
    """Refuse a rule that cannot be used on shares.

    Raises:
        AggregationError: if it picks a single update, or cannot pick by distances, or is unknown.
    """
    traits = RULES.get(rule)
    if traits is not None and traits.is_single:
        message = f"rule={rule!r} must not be used on shares: it would open a single update"
        raise AggregationError(message)
    if traits is None or not traits.works_on_shares:
        known = rules_that(lambda traits: traits.works_on_shares)
        message = f"rule={rule!r} on shares must be one of {', '.join(sorted(known))}"
        raise AggregationError(message)


def _picked(params: RoundParameters, verdict: Verdict) -> list[int]:
    check_rule(params.rule)
    passed = verdict.passed
    if RULES[params.rule].is_linear:
        return list(passed)
    if verdict.distances is None:
        message = f"rule={params.rule!r} needs distances, which were not opened"
        raise AggregationError(message)
    distances = verdict.distances[np.ix_(passed, passed)]
    pick = make_pick(params.rule)
    places = pick(distances, params.num_byzantine, params.num_to_select or None)
    return [passed[place] for place in places]


def _grouped(coin: Coin, picked: Sequence[int], size: int) -> list[tuple[int, ...]]:
    num_groups = len(picked) // size
    if num_groups == 0:
        message = f"{len(picked)} updates must be at least group_size={size}"
        raise TooFewUpdatesError(message)
    return coin.groups(_GROUPS_USE, picked, num_groups)


def _require_members(params: RoundParameters, what: str, count: int) -> None:
    if count < params.min_members:
        message = f"{count} updates {what}, which must be at least min_members={params.min_members}"
        raise TooFewUpdatesError(message)


def _require_allowed(params: RoundParameters, mode: SelectionMode) -> None:
    if not may_select(mode, params.degraded):
        message = f"mode={mode.name} is not what degraded={params.degraded.name} allows"
        raise AggregationError(message)
