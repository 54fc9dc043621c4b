"""Who passed a round's checks: derived by every party from the same statements."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from security.errors import EvidenceInsufficientError
from security.secret_sharing.field import Words
from security.secret_sharing.fixed_point import centered
from security.secret_sharing.reconstruction import OpenedEach
from security.shared_round.opening.coins import Coin
from security.shared_round.opening.opened_checks import (
    OpenedChecks,
    open_values,
    outliers,
    wrong_holders,
)
from security.shared_round.opening.openings import OpeningValues, member_pairs, opening_sizes
from security.shared_round.opening.trusted_openings import (
    TrustedOpenings,
    open_truthful,
    open_undisputed,
    refuse_count,
)
from security.shared_round.opening.wrap_around import wrap_groups
from security.shared_round.terms.bounds import distance_bound
from security.shared_round.terms.member_set import SelectionMode
from security.shared_round.terms.parameter_rules import blame_bound, group_bound
from security.shared_round.terms.parameters import RoundParameters

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
        disputed: holders without which everything was opened, ascending: some member's share there
            is wrong, which is that device's doing or the holder's. Their shares of the sums must
            not be used either.
    """

    passed: tuple[int, ...]
    failed: Mapping[int, FailureReason]
    suspects: tuple[int, ...] = ()
    distances: Matrix | None = None
    liars: tuple[int, ...] = ()
    disputed: tuple[int, ...] = ()


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
    that the holder lies. A holder that is wrong at more than half of the members is a liar, and
    everything is opened without it. Those wrong at fewer are disputed: where they are at most
    t - 1, and enough others remain, everything is opened without them, and the members stay, unless
    more would fail that way. Where they are not, the members are left out. So it is with (2, 3) and
    (3, 5), whose products take every holder: there, one lying holder can leave out up to half of
    the members. Wrong shares of products
    or scalars of members whose own shares are consistent are lies of the holder for certain; it is
    named, and where redundancy allows the value is right all the same. Without redundancy, such as
    for products of (3, 5), a lie makes a norm non-zero and the member fails.

    Args:
        params: the round.
        coin: of the frozen set.
        num_members: m.
        openings: by holder; their order plays no part.
        mode: degraded modes use only what is linear, consistency and wrap-around tests, and only
            where the full checks cannot be opened from the same openings.

    Returns:
        In rounds without checks everybody passes.

    Raises:
        EvidenceInsufficientError: if there are openings of fewer than a quorum, or of 2t - 1 for
            the full checks; if without liars fewer are left than 2t - 1, or t + 1 in degraded
            modes; if a holder's have the wrong numbers; if a distance between members that passed
            is impossible, so that a holder lied and no one knows which; or if a mode is degraded
            without need.

    Guarantees:
        The same verdict from the same openings in any order. It is right as long as no more than
        (m - t) // 2 of m holders lie about linear values, and (m - 2t + 1) // 2 about products.
    """
    if not params.is_checked:
        if mode is not SelectionMode.CHECKED:
            message = f"mode={mode.name} must be CHECKED in a round without checks"
            raise EvidenceInsufficientError(message)
        return Verdict(passed=tuple(range(num_members)), failed={})
    _check_sizes(params, num_members, openings)
    with_products = mode is SelectionMode.CHECKED
    least = max(params.quorum, params.scheme.product_shares if with_products else 0)
    if len(openings) < least:
        refuse_count("openings", len(openings), least)
    if not with_products:
        _refuse_needless(params, coin, num_members, openings)
    groups = wrap_groups(params, coin, num_members)
    rows = dict(sorted(openings.items()))
    everything = open_truthful(params, rows, num_members, with_products=with_products)
    undisputed = open_undisputed(params, rows, everything)
    if undisputed is None:
        return _verdict(params, groups, everything)
    return _fairer(
        lambda: _verdict(params, groups, everything), lambda: _verdict(params, groups, undisputed)
    )


def _fairer(corrected: Callable[[], Verdict], undisputed: Callable[[], Verdict]) -> Verdict:
    """Take the verdict under which fewer members fail; of equal ones the first.

    Where a device makes a true holder disputed, so that another's lies are not corrected any more,
    nothing is gained by leaving the true one out.
    """
    try:
        other = undisputed()
    except EvidenceInsufficientError:
        return corrected()
    try:
        first = corrected()
    except EvidenceInsufficientError:
        return other
    return min(first, other, key=lambda each: (len(each.failed), len(each.suspects)))


def _refuse_needless(
    params: RoundParameters,
    coin: Coin,
    num_members: int,
    openings: Mapping[int, OpeningValues],
) -> None:
    """Refuse a degraded mode where the same openings give the full checks."""
    try:
        judge(params, coin, num_members, openings)
    except EvidenceInsufficientError:
        return
    message = f"openings of {len(openings)} holders give the full checks: nothing less will do"
    raise EvidenceInsufficientError(message)


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
        EvidenceInsufficientError: if there are openings of fewer than a quorum; if without liars
            and disputed holders, those found now among them, fewer than t + 1 are left; or if one
            has another length.

    Guarantees:
        The same verdict from the same openings in any order.
    """
    count = len(verdict.suspects)
    if count == 0:
        return verdict
    if len(blame) < params.quorum:
        refuse_count("blame", len(blame), params.quorum)
    unreliable = {*verdict.liars, *verdict.disputed}
    rows = {holder: blame[holder] for holder in sorted(blame) if holder not in unreliable}
    for holder, values in rows.items():
        _check_length("blame", holder, len(values), count * params.wrap_tests)
    is_right = [position not in verdict.failed for position in verdict.suspects]
    among = np.repeat(np.array(is_right, dtype=np.bool_), params.wrap_tests)
    opened = _open_blame(params, rows, params.threshold + (len(rows) < len(blame)))
    lied: set[int] = set()
    while found := outliers(opened, among):
        lied |= found
        rows = {holder: values for holder, values in rows.items() if holder not in found}
        opened = _open_blame(params, rows, params.threshold + 1)
    failed = dict(verdict.failed)
    for position, reason in _blamed(params, verdict.suspects, opened).items():
        failed.setdefault(position, reason)
    liars = {*verdict.liars, *wrong_holders(opened, among), *lied}
    cleared = [position for position in verdict.suspects if position not in failed]
    return _final(
        Verdict(
            passed=tuple(sorted({*verdict.passed, *cleared})),
            failed=dict(sorted(failed.items())),
            distances=verdict.distances,
            liars=tuple(sorted(liars)),
            disputed=verdict.disputed,
        )
    )


def _open_blame(params: RoundParameters, rows: Mapping[int, Words], least: int) -> OpenedEach:
    if len(rows) < least:
        refuse_count("blame", len(rows), least)
    return open_values(params, rows, factors=1)


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
    params: RoundParameters, groups: list[tuple[int, ...]], trusted: TrustedOpenings
) -> Verdict:
    opened = trusted.opened
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
            liars=tuple(sorted(trusted.dropped | opened.liars(groups))),
            disputed=tuple(sorted(trusted.disputed)),
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
