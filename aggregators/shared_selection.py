"""Which updates a shared round sums: derived by every share holder from the same verdict."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.gram import Gram
from aggregators.rules.multi_krum import multi_krum_weights
from security.shared_round.coins import Coin
from security.shared_round.member_set import Selection, SelectionMode
from security.shared_round.parameters import Degraded, RoundParameters
from security.shared_round.verdicts import Verdict

DEGRADED_GROUP_SIZE: Final = 8
"""Updates in each sum of a degraded round that names no group size."""

_OUTLIER_RATIO: Final = 3
_GROUPS_USE: Final = "sum groups"
_EXACT_BITS: Final = 53

Distances = NDArray[np.int64]
Pick = Callable[[RoundParameters, Distances], list[int]]


def select(
    params: RoundParameters,
    coin: Coin,
    verdict: Verdict,
    *,
    set_sha256: bytes,
    mode: SelectionMode = SelectionMode.CHECKED,
) -> Selection:
    """Derive the sums that a round opens.

    In mode CHECKED the round's rule picks among the members that passed: "mean" takes all of them,
    "multi-krum" and "distance-outliers" go by the opened distances. What is picked makes one sum,
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
        AggregationError: if it picks a single update, or is unknown.
    """
    if rule == "krum":
        message = "rule='krum' must not be used on shares: it would open a single update"
        raise AggregationError(message)
    if rule not in RULES:
        message = f"rule={rule!r} on shares must be one of {', '.join(sorted(RULES))}"
        raise AggregationError(message)


def _picked(params: RoundParameters, verdict: Verdict) -> list[int]:
    check_rule(params.rule)
    passed = verdict.passed
    if params.rule == "mean":
        return list(passed)
    if verdict.distances is None:
        message = f"rule={params.rule!r} needs distances, which were not opened"
        raise AggregationError(message)
    distances = verdict.distances[np.ix_(passed, passed)]
    return [passed[place] for place in RULES[params.rule](params, distances)]


def _all(_: RoundParameters, distances: Distances) -> list[int]:
    return list(range(len(distances)))


def _multi_krum(params: RoundParameters, distances: Distances) -> list[int]:
    """Take the m members with the least sums of distances to their n - f - 2 nearest.

    Distances lose their lowest bits, the same for everybody, until sums of them are exact in
    float64: then no order of additions matters.
    """
    largest = int(distances.max(initial=0)) * len(distances)
    shift = max(0, largest.bit_length() - _EXACT_BITS)
    squares = (distances >> shift).astype(np.float64)
    inner = (squares[0][:, np.newaxis] + squares[0] - squares) / 2.0
    combination = multi_krum_weights(
        Gram.from_inner(inner),
        num_byzantine=params.num_byzantine,
        num_to_select=params.num_to_select or None,
    )
    return [int(place) for place in np.flatnonzero(combination.weights)]


def _distance_outliers(_: RoundParameters, distances: Distances) -> list[int]:
    """Leave out members whose median distance to the others is above 3 medians of those.

    Of an even number, the lower of the middle two is the median: integers stay integers.
    """
    count = len(distances)
    if count < 3:
        message = f"distance-outliers must have at least 3 updates, got n={count}"
        raise TooFewUpdatesError(message)
    # Each row's own zero comes first in it.
    medians = np.sort(distances, axis=1)[:, 1 + (count - 2) // 2]
    limit = _OUTLIER_RATIO * int(np.sort(medians)[(count - 1) // 2])
    return [place for place, median in enumerate(medians) if int(median) <= limit]


RULES: Final[Mapping[str, Pick]] = {
    "mean": _all,
    "multi-krum": _multi_krum,
    "distance-outliers": _distance_outliers,
}


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
    allowed = {
        SelectionMode.DEGRADED_GROUPED: Degraded.GROUPED,
        SelectionMode.DEGRADED_UNCHECKED: Degraded.UNCHECKED,
    }[mode]
    if params.degraded is not allowed:
        message = f"mode={mode.name} is not what degraded={params.degraded.name} allows"
        raise AggregationError(message)
