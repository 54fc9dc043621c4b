"""Verdicts under lying holders, missing holders and evidence in any order."""

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest

from security.errors import EvidenceInsufficientError
from security.shared_round.opening.coins import Coin
from security.shared_round.opening.openings import OpeningValues
from security.shared_round.opening.sum_opening import open_sums
from security.shared_round.opening.verdicts import FailureReason, Verdict, judge, judge_blame
from security.shared_round.terms.member_set import SelectionMode
from security.shared_round.terms.parameter_facts import Checks, ShareFormat
from security.shared_round.terms.parameters import RoundParameters
from tests.looped import looped
from tests.security.shared_round.shared_vectors import (
    Committee,
    device_vector,
    integers,
    parameters,
    update,
)

MEMBERS = 6
ONE = np.uint64(1)
Rows = dict[int, OpeningValues]


def opened(params: RoundParameters) -> tuple[Committee, Coin, Rows]:
    rng = np.random.default_rng(5)
    vectors = [device_vector(params, update(params, rng), i) for i in range(MEMBERS)]
    group = Committee.of(params, vectors)
    coin = group.coin()
    return group, coin, group.openings(coin)


def changed(
    row: OpeningValues, name: str, places: slice | list[int] = slice(None)
) -> OpeningValues:
    """Let a holder lie about some values."""
    values = getattr(row, name).copy()
    values[places] ^= ONE
    return replace(row, **{name: values})


def same(one: Verdict, other: Verdict) -> bool:
    if one.distances is None or other.distances is None:
        equal = one.distances is other.distances
    else:
        equal = np.array_equal(one.distances, other.distances)
    names = ("passed", "failed", "suspects", "liars", "disputed")
    return equal and all(getattr(one, name) == getattr(other, name) for name in names)


@looped("scheme", [(2, 5), (3, 7)])
@looped(
    "name, format_",
    [
        ("consistency", ShareFormat.SHAMIR_SEEDED),
        *product(("norms", "wraps", "distances"), ShareFormat),
    ],
)
def test_with_redundancy_a_lying_holder_is_named_and_changes_nothing(
    name: str, scheme: tuple[int, int], format_: ShareFormat
) -> None:
    params = parameters(threshold=scheme[0], holders=scheme[1], format=format_)
    _, coin, rows = opened(params)
    truth = judge(params, coin, MEMBERS, rows)
    assert truth.passed == tuple(range(MEMBERS))
    rows[4] = changed(rows[4], name)
    verdict = judge(params, coin, MEMBERS, rows)
    assert verdict.liars == (4,)
    assert same(replace(verdict, liars=()), truth)


def test_a_holder_that_lies_about_one_norm_is_named() -> None:
    params = parameters(threshold=2, holders=5)
    _, coin, rows = opened(params)
    rows[1] = changed(rows[1], "norms", [3])
    verdict = judge(params, coin, MEMBERS, rows)
    assert (verdict.liars, verdict.passed) == ((1,), tuple(range(MEMBERS)))


def test_without_redundancy_a_lie_about_norms_fails_members() -> None:
    params = parameters()
    _, coin, rows = opened(params)
    rows[2] = changed(rows[2], "norms", [0, 5])
    verdict = judge(params, coin, MEMBERS, rows)
    assert verdict.failed == {0: FailureReason.NORM, 5: FailureReason.NORM}
    assert verdict.liars == ()


def test_without_redundancy_impossible_distances_are_no_member_s_fault() -> None:
    params = parameters()
    _, coin, rows = opened(params)
    distances = rows[2].distances.copy()
    distances[0] ^= np.uint64(1 << 59)  # a small lie would make another possible distance
    rows[2] = replace(rows[2], distances=distances)
    with pytest.raises(EvidenceInsufficientError, match="1 distances"):
        judge(params, coin, MEMBERS, rows)


def test_a_holder_wrong_at_more_than_half_of_the_members_is_dropped() -> None:
    params = parameters()
    _, coin, rows = opened(params)
    rows[2] = changed(rows[2], "consistency", [0, 1, 2, 3])
    # Five rows less one: too few for the products of (3, 5).
    with pytest.raises(EvidenceInsufficientError, match="at least 5"):
        judge(params, coin, MEMBERS, rows)
    verdict = judge(params, coin, MEMBERS, rows, mode=SelectionMode.DEGRADED_UNCHECKED)
    assert (verdict.liars, verdict.passed) == ((2,), tuple(range(MEMBERS)))


def test_a_holder_wrong_at_half_of_the_members_takes_them_along() -> None:
    params = parameters()
    _, coin, rows = opened(params)
    rows[2] = changed(rows[2], "consistency", [0, 1, 2])
    verdict = judge(params, coin, MEMBERS, rows)
    assert verdict.failed == dict.fromkeys((0, 1, 2), FailureReason.INCONSISTENT)
    assert verdict.liars == ()


@pytest.mark.parametrize("scheme", [(2, 5), (3, 7)])
def test_a_holder_wrong_at_few_members_is_disputed_and_the_members_stay(
    scheme: tuple[int, int],
) -> None:
    params = parameters(threshold=scheme[0], holders=scheme[1])
    _, coin, rows = opened(params)
    truth = judge(params, coin, MEMBERS, rows)
    rows[2] = changed(rows[2], "consistency", [0, 1, 2])
    verdict = judge(params, coin, MEMBERS, rows)
    assert (verdict.disputed, verdict.liars) == ((2,), ())
    assert verdict.passed == tuple(range(MEMBERS))
    assert same(replace(verdict, disputed=()), truth)


def test_as_many_holders_may_be_disputed_as_may_be_malicious() -> None:
    params = parameters(threshold=3, holders=7)
    _, coin, rows = opened(params)
    rows[2] = changed(rows[2], "consistency", [0])
    rows[5] = changed(rows[5], "consistency", [0, 3])
    assert judge(params, coin, MEMBERS, rows).disputed == (2, 5)
    rows[6] = changed(rows[6], "consistency", [4])
    verdict = judge(params, coin, MEMBERS, rows)
    assert verdict.disputed == ()
    assert verdict.failed == dict.fromkeys((0, 3, 4), FailureReason.INCONSISTENT)


def test_a_device_with_a_wrong_share_at_one_holder_stays_and_the_sum_is_right() -> None:
    params = parameters(threshold=2, holders=5)
    group, coin, _ = opened(params)
    right = open_sums(params, group.sums([range(MEMBERS)]), weights=[MEMBERS]).sums[0]
    group.shares[3][1] = group.shares[3][1] ^ ONE
    verdict = judge(params, coin, MEMBERS, group.openings(coin))
    assert (verdict.passed, verdict.disputed) == (tuple(range(MEMBERS)), (3,))
    shares = group.sums([range(MEMBERS)])
    del shares[3]
    opened_ = open_sums(params, shares, weights=[MEMBERS])
    assert np.array_equal(opened_.sums[0], right)


def test_a_device_that_makes_a_true_holder_disputed_does_not_cover_for_a_liar() -> None:
    """Without holder 4, the lies of holder 1 about norms of (2, 5) could not be corrected."""
    params = parameters(threshold=2, holders=5)
    group, coin, _ = opened(params)
    group.shares[4][5] = group.shares[4][5] ^ ONE
    rows = group.openings(coin)
    rows[1] = changed(rows[1], "norms", [0, 1])
    verdict = judge(params, coin, MEMBERS, rows)
    assert verdict.failed == {5: FailureReason.INCONSISTENT}
    assert (verdict.liars, verdict.disputed) == ((1,), ())


def test_disputed_holders_say_nothing_in_blame() -> None:
    params, group, coin, _ = blamed((2, 5))
    group.shares[3][0] = group.shares[3][0] ^ ONE
    verdict = judge(params, coin, MEMBERS, group.openings(coin))
    assert verdict.disputed == (3,)
    rows = group.blame(coin, verdict.suspects)
    found = judge_blame(params, verdict, rows | {3: rows[3] ^ ONE})
    assert (found.liars, found.disputed, found.passed) == ((), (3,), (0, 2, 3, 4, 5))


def test_less_is_not_checked_where_the_full_checks_can_be_opened() -> None:
    params = parameters()
    _, coin, rows = opened(params)
    for mode in (SelectionMode.DEGRADED_GROUPED, SelectionMode.DEGRADED_UNCHECKED):
        with pytest.raises(EvidenceInsufficientError, match="give the full checks"):
            judge(params, coin, MEMBERS, rows, mode=mode)
        assert judge(params, coin, MEMBERS, without(rows, 3), mode=mode).failed == {}
        sum_only = parameters(checks=Checks.SUM)
        with pytest.raises(EvidenceInsufficientError, match="without checks"):
            judge(sum_only, coin, MEMBERS, {}, mode=mode)


def without(rows: Rows, *holders: int) -> Rows:
    return {j: row for j, row in rows.items() if j not in holders}


def test_contradictions_of_unknown_origin_blame_no_member() -> None:
    params = parameters(threshold=2, holders=5, format=ShareFormat.CNF_SEEDED)
    _, coin, rows = opened(params)
    rows[2] = changed(rows[2], "norms")
    del rows[5]  # four rows of degree 2 notice an error and cannot tell whose
    with pytest.raises(EvidenceInsufficientError, match="contradict"):
        judge(params, coin, MEMBERS, rows)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_too_few_holders_decide_nothing(count: int) -> None:
    params = parameters()
    _, coin, rows = opened(params)
    few = {j: rows[j] for j in range(1, count + 1)}
    for mode in SelectionMode:
        with pytest.raises(EvidenceInsufficientError, match="at least"):
            judge(params, coin, MEMBERS, few, mode=mode)


def test_degraded_modes_need_a_quorum_and_open_no_products() -> None:
    params = parameters()
    _, coin, rows = opened(params)
    four = {j: changed(rows[j], "norms") for j in (1, 2, 3, 5)}
    with pytest.raises(EvidenceInsufficientError, match="at least 5"):
        judge(params, coin, MEMBERS, four)
    verdict = judge(params, coin, MEMBERS, four, mode=SelectionMode.DEGRADED_GROUPED)
    assert verdict.passed == tuple(range(MEMBERS))
    assert verdict.distances is None


def test_rows_of_the_wrong_length_are_refused() -> None:
    params = parameters()
    _, coin, rows = opened(params)
    rows[3] = replace(rows[3], wraps=rows[3].wraps[:-1])
    with pytest.raises(EvidenceInsufficientError, match="holder 3 must have 40 words, got 39"):
        judge(params, coin, MEMBERS, rows)


def test_without_checks_everybody_passes() -> None:
    params = parameters(checks=Checks.SUM)
    verdict = judge(params, Coin(value=bytes(32)), 4, {})
    assert (verdict.passed, verdict.failed, verdict.distances) == ((0, 1, 2, 3), {}, None)


def test_the_order_of_the_evidence_plays_no_part() -> None:
    params = parameters(threshold=2, holders=4)
    group, coin, rows = opened(params)
    group.shares[1][0] = group.shares[1][0][::-1].copy()
    rows = group.openings(coin)
    rows[3] = changed(rows[3], "wraps", [4, 9])
    verdicts = [
        judge(params, coin, MEMBERS, {j: rows[j] for j in order}) for order in permutations(rows)
    ]
    assert all(same(verdict, verdicts[0]) for verdict in verdicts)


def blamed(scheme: tuple[int, int]) -> tuple[RoundParameters, Committee, Coin, Verdict]:
    params = parameters(threshold=scheme[0], holders=scheme[1], wrap_tests=20)
    rng = np.random.default_rng(5)
    vectors = [device_vector(params, update(params, rng), i) for i in range(MEMBERS)]
    vectors[1][: params.dim] = integers(params, [2**45] * params.dim)
    group = Committee.of(params, vectors)
    coin = group.coin()
    return params, group, coin, judge(params, coin, MEMBERS, group.openings(coin))


def test_blame_needs_a_quorum_and_rows_of_the_right_length() -> None:
    params, group, coin, verdict = blamed((3, 5))
    assert verdict.suspects == tuple(range(MEMBERS))
    rows = group.blame(coin, verdict.suspects)
    with pytest.raises(EvidenceInsufficientError, match="at least 4"):
        judge_blame(params, verdict, {j: rows[j] for j in (1, 2, 4)})
    with pytest.raises(EvidenceInsufficientError, match="120 words, got 119"):
        judge_blame(params, verdict, rows | {2: rows[2][1:]})
    four = judge_blame(params, verdict, {j: rows[j] for j in (1, 2, 3, 5)})
    # A vector that long fails its norm before; the reason found first stays.
    assert four.failed == {1: FailureReason.NORM}
    assert four.passed == (0, 2, 3, 4, 5)


def test_a_holder_that_lies_in_blame_is_named() -> None:
    params, group, coin, verdict = blamed((2, 5))
    rows = group.blame(coin, verdict.suspects)
    truth = judge_blame(params, verdict, rows)
    rows[3] = rows[3] ^ ONE
    lied = judge_blame(params, verdict, rows)
    assert lied.liars == (3,)
    assert same(replace(lied, liars=()), truth)


def test_blame_without_suspects_changes_nothing() -> None:
    params = parameters()
    _, coin, rows = opened(params)
    verdict = judge(params, coin, MEMBERS, rows)
    assert judge_blame(params, verdict, {}) is verdict
