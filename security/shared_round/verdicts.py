"""Who passed a round's checks: derived by every party from the same statements."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from security.errors import EvidenceInsufficientError
from security.secret_sharing.field import Words
from security.secret_sharing.fixed_point import centered
from security.secret_sharing.reconstruction import OpenedEach
from security.shared_round.bounds import distance_bound
from security.shared_round.coins import Coin
from security.shared_round.member_set import SelectionMode
from security.shared_round.opened_checks import (
    OpenedChecks,
    open_values,
    outliers,
    wrong_holders,
)
from security.shared_round.openings import OpeningValues, member_pairs, opening_sizes
from security.shared_round.parameter_rules import blame_bound, group_bound
from security.shared_round.parameters import RoundParameters
from security.shared_round.wrap_test import wrap_groups

Matrix = NDArray[np.int64]

_IMPOSSIBLE: Final = -1


class FailureReason(Enum):
    """Why a member's update is left out."""

    INCONSISTENT = "inconsistent"  # its shares lie on no polynomial, or one of them does not
    NORM = "norm"  # longer than the bound, or its slack bits are none
    WRAP = "wrap"  # some number of it goes around the field


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Verdict:
    """What the openings of a frozen set show; members are positions in it.

    Attributes:
        passed: members that passed every check opened, ascending. Suspects are not among them.
        failed: the others, and why.
        suspects: members whose own tests must be opened first, ascending: all of the failed
            groups, whatever else they failed.
        distances: (m, m), int64: squared distances of the members' sketches, summed over the
            copies; meaningless for members that failed. None where none were opened.
        liars: holders that stated wrong shares, ascending.
    """

    passed: tuple[int, ...]
    failed: Mapping[int, FailureReason]
    suspects: tuple[int, ...] = ()
    distances: Matrix | None = None
    liars: tuple[int, ...] = ()


def judge(
    params: RoundParameters,
    coin: Coin,
    num_members: int,
    openings: Mapping[int, OpeningValues],
    *,
    mode: SelectionMode = SelectionMode.CHECKED,
) -> Verdict:
    """Derive who passed from the holders' openings.

    A share of one member that is wrong at one holder means that the member dealt it wrongly or
    that the holder lies. The member is left out, unless the holder is wrong at more than half of
    the members: then it is a liar, and everything is opened without it. Wrong shares of products
    or scalars of members whose own shares are consistent are lies of the holder for certain; it is
    named, and where redundancy allows the value is right all the same. Without redundancy, such as
    for products of (3, 5), a lie makes a norm non-zero and the member fails.

    Args:
        params: the round.
        coin: of the frozen set.
        num_members: m.
        openings: by holder; their order plays no part.
        mode: degraded modes use only what is linear, consistency and wrap-around tests.

    Returns:
        In rounds without checks everybody passes.

    Raises:
        EvidenceInsufficientError: if fewer holders' openings are left than open the values, 2t - 1
            or in degraded modes t; if a holder's have the wrong numbers; or if a distance between
            members that passed is impossible, so that a holder lied and no one knows which.

    Guarantees:
        The same verdict from the same openings in any order.
    """
    if not params.is_checked:
        return Verdict(passed=tuple(range(num_members)), failed={})
    _check_sizes(params, num_members, openings)
    with_products = mode is SelectionMode.CHECKED
    rows = dict(sorted(openings.items()))
    dropped: set[int] = set()
    while True:
        _check_count(params, rows, with_products=with_products)
        opened = OpenedChecks(params, rows, num_members, with_products=with_products)
        found = opened.outliers()
        if not found:
            break
        dropped |= found
        rows = {holder: values for holder, values in rows.items() if holder not in found}
    return _verdict(params, wrap_groups(params, coin, num_members), opened, dropped)


def judge_blame(params: RoundParameters, verdict: Verdict, blame: Mapping[int, Words]) -> Verdict:
    """Derive which suspects passed from the holders' openings of their own tests.

    A suspect fails by a scalar above the bound of one member, or by shares of scalars that lie on
    no polynomial. A group that failed without any such member stands by its members' own tests.

    Args:
        params: the round.
        verdict: with suspects.
        blame: by holder, (len(suspects) * wrap_tests,).

    Returns:
        The verdict without suspects.

    Raises:
        EvidenceInsufficientError: if fewer than t holders' openings are left, or one has another
            length.

    Guarantees:
        The same verdict from the same openings in any order.
    """
    count = len(verdict.suspects)
    if count == 0:
        return verdict
    rows = {holder: blame[holder] for holder in sorted(blame) if holder not in verdict.liars}
    for holder, values in rows.items():
        _check_length("blame", holder, len(values), count * params.wrap_tests)
    is_right = [position not in verdict.failed for position in verdict.suspects]
    among = np.repeat(np.array(is_right, dtype=np.bool_), params.wrap_tests)
    while True:
        if len(rows) < params.threshold:
            _refuse_count("blame", len(rows), params.threshold)
        opened = open_values(params, rows, factors=1)
        found = outliers(opened, among)
        if not found:
            break
        rows = {holder: values for holder, values in rows.items() if holder not in found}
    failed = dict(verdict.failed)
    for position, reason in _blamed(params, verdict.suspects, opened).items():
        failed.setdefault(position, reason)
    liars = {*verdict.liars, *wrong_holders(opened, among), *(set(blame) - set(rows))}
    cleared = [position for position in verdict.suspects if position not in failed]
    return _final(
        Verdict(
            passed=tuple(sorted({*verdict.passed, *cleared})),
            failed=dict(sorted(failed.items())),
            distances=verdict.distances,
            liars=tuple(sorted(liars)),
        )
    )


def _blamed(
    params: RoundParameters, suspects: tuple[int, ...], opened: OpenedEach
) -> dict[int, FailureReason]:
    """List the suspects that fail their own tests."""
    shape = (len(suspects), params.wrap_tests)
    is_open: NDArray[np.bool_] = np.all(opened.consistent.reshape(shape), axis=1)
    sizes = np.abs(centered(opened.values, params.field)).reshape(shape).max(axis=1)
    blamed: dict[int, FailureReason] = {}
    for position, opens, size in zip(suspects, is_open, sizes, strict=True):
        if not opens:
            blamed[position] = FailureReason.INCONSISTENT
        elif size > blame_bound(params):
            blamed[position] = FailureReason.WRAP
    return blamed


def _verdict(
    params: RoundParameters,
    groups: list[tuple[int, ...]],
    opened: OpenedChecks,
    dropped: set[int],
) -> Verdict:
    failed = dict.fromkeys(_positions(opened.inconsistent), FailureReason.INCONSISTENT)
    if opened.norms is not None:
        for position in _positions(~opened.norms.consistent):
            failed.setdefault(position, FailureReason.INCONSISTENT)
        for position in _positions(opened.norms.values != 0):
            failed.setdefault(position, FailureReason.NORM)
    suspects = _suspects(params, groups, opened.wraps)
    left_out = {*failed, *suspects}
    return _final(
        Verdict(
            passed=tuple(i for i in range(opened.num_members) if i not in left_out),
            failed=dict(sorted(failed.items())),
            suspects=tuple(sorted(suspects)),
            distances=_distances(params, opened),
            liars=tuple(sorted(dropped | opened.liars(groups))),
        )
    )


def _final(verdict: Verdict) -> Verdict:
    """Refuse impossible distances between members that passed everything else.

    Their sketches are short, so their distances are small: a holder lied, and any of them may have.
    """
    if verdict.distances is not None and verdict.passed:
        among = verdict.distances[np.ix_(verdict.passed, verdict.passed)]
        count = np.count_nonzero(among == _IMPOSSIBLE) // 2
        if count:
            message = f"{count} distances between members that passed are impossible:"
            message += " which holder is wrong cannot be told"
            raise EvidenceInsufficientError(message)
    return verdict


def _positions(flags: NDArray[np.bool_]) -> list[int]:
    return [int(position) for position in np.flatnonzero(flags)]


def _suspects(
    params: RoundParameters, groups: list[tuple[int, ...]], wraps: OpenedEach
) -> set[int]:
    """List the members of groups with a scalar above the bound, or one that does not open."""
    sizes = np.abs(centered(wraps.values, params.field)).reshape(len(groups), -1).max(axis=1)
    is_open: NDArray[np.bool_] = np.all(wraps.consistent.reshape(len(groups), -1), axis=1)
    suspects: set[int] = set()
    for members, size, group_is_open in zip(groups, sizes, is_open, strict=True):
        if not group_is_open or size > group_bound(params, len(members)):
            suspects.update(members)
    return suspects


def _distances(params: RoundParameters, opened: OpenedChecks) -> Matrix | None:
    """Arrange the distances; those that do not open or are too large are `_IMPOSSIBLE`."""
    if opened.distances is None:
        return None
    values = opened.distances.values.astype(np.int64)
    is_bad = ~opened.distances.consistent | (values > distance_bound(params.norm_bound))
    matrix = np.zeros((opened.num_members, opened.num_members), dtype=np.int64)
    earlier, later = member_pairs(opened.num_members)
    matrix[earlier, later] = matrix[later, earlier] = np.where(is_bad, _IMPOSSIBLE, values)
    return matrix


def _check_sizes(
    params: RoundParameters, num_members: int, openings: Mapping[int, OpeningValues]
) -> None:
    sizes = opening_sizes(params, num_members)
    for holder, row in openings.items():
        vectors = (row.consistency, row.norms, row.wraps, row.distances)
        for values, size in zip(vectors, sizes, strict=True):
            _check_length("openings", holder, len(values), size)


def _check_length(name: str, holder: int, length: int, expected: int) -> None:
    if length != expected:
        message = f"{name} of holder {holder} must have {expected} words, got {length}"
        raise EvidenceInsufficientError(message)


def _check_count(
    params: RoundParameters, rows: Mapping[int, OpeningValues], *, with_products: bool
) -> None:
    needed = params.scheme.product_shares if with_products else params.threshold
    if len(rows) < needed:
        _refuse_count("openings", len(rows), needed)


def _refuse_count(name: str, count: int, needed: int) -> None:
    message = f"{name} of {count} truthful holders must be at least {needed}"
    raise EvidenceInsufficientError(message)
