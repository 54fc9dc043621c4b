"""Selections on opened distances, against the rules on plain vectors."""

import hashlib
from typing import Any

import numpy as np
import pytest

from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.rows.gram import Gram
from aggregators.rules.multi_krum import multi_krum_weights
from aggregators.shared_selection import check_rule, select
from security.secret_sharing.fixed_point import centered
from security.shared_round.opening.coins import Coin
from security.shared_round.opening.vector_scan import VectorScan
from security.shared_round.opening.verdicts import FailureReason, Verdict, judge
from security.shared_round.terms.member_set import SelectionMode
from security.shared_round.terms.parameter_facts import Checks, Degraded
from security.shared_round.terms.parameters import RoundParameters
from tests.security.shared_round.shared_vectors import (
    SET_SHA256,
    Committee,
    HeldVector,
    device_vector,
    integers,
    parameters,
)

COIN = Coin(value=hashlib.sha256(b"coin").digest())


def verdict_of(distances: Any = None, *, count: int = 12, failed: tuple[int, ...] = ()) -> Verdict:
    matrix = None if distances is None else np.array(distances, dtype=np.int64)
    total = count if matrix is None else len(matrix)
    return Verdict(
        passed=tuple(i for i in range(total) if i not in failed),
        failed=dict.fromkeys(failed, FailureReason.NORM),
        distances=matrix,
    )


def chosen(params: RoundParameters, verdict: Verdict, **mode: SelectionMode) -> Any:
    return select(params, COIN, verdict, set_sha256=SET_SHA256, **mode).sums


def updates(params: RoundParameters, attack: str, honest: int = 10, bad: int = 3) -> np.ndarray:
    """Draw updates around one direction, and attackers of the same norm; (n, d), float64."""
    rng = np.random.default_rng(4)
    center = rng.standard_normal(params.dim)
    rows = center + 0.5 * rng.standard_normal((honest + bad, params.dim))
    if attack == "sign-flip":
        rows[honest:] = -rows[honest:]
    elif attack == "noise":
        rows[honest:] = rng.standard_normal((bad, params.dim))
    clipped: np.ndarray = 0.99 * rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return clipped


def shared_verdict(params: RoundParameters, rows: np.ndarray) -> tuple[Verdict, Coin, list[Any]]:
    words = [integers(params, np.rint(row * 2**params.fraction_bits)) for row in rows]
    vectors = [device_vector(params, each, i) for i, each in enumerate(words)]
    group = Committee.of(params, vectors)
    coin = group.coin()
    return judge(params, coin, len(rows), group.openings(coin)), coin, vectors


@pytest.mark.parametrize("attack", ["sign-flip", "noise"])
@pytest.mark.parametrize("keep", [0, 5])
def test_multi_krum_on_shares_is_multi_krum_on_the_plain_updates(attack: str, keep: int) -> None:
    params = parameters(dim=4_000, rule="multi-krum", num_byzantine=3, num_to_select=keep)
    rows = updates(params, attack)
    verdict, coin, vectors = shared_verdict(params, rows)
    assert verdict.passed == tuple(range(13))
    picked = select(params, coin, verdict, set_sha256=SET_SHA256).sums[0]

    scan = VectorScan(params, coin)
    sketches = np.array(
        [
            centered(scan.scan(HeldVector(words=v)).sketches.reshape(-1), params.field)
            for v in vectors
        ],
        dtype=np.float64,
    )
    sketched = multi_krum_weights(
        Gram.from_inner(sketches @ sketches.T), num_byzantine=3, num_to_select=keep or None
    )
    assert picked == tuple(np.flatnonzero(sketched.weights))
    # On the updates themselves every attacker is left out as well.
    exact = multi_krum_weights(
        Gram.from_inner(rows @ rows.T), num_byzantine=3, num_to_select=keep or None
    )
    assert set(np.flatnonzero(exact.weights)) <= set(range(10))
    assert set(picked) <= set(range(10))


@pytest.mark.parametrize("attack", ["sign-flip", "noise"])
def test_distance_outliers_leaves_out_attackers_and_no_one_of_a_calm_round(attack: str) -> None:
    params = parameters(dim=1_000, rule="distance-outliers")
    verdict, coin, _ = shared_verdict(params, updates(params, attack))
    picked = select(params, coin, verdict, set_sha256=SET_SHA256).sums[0]
    assert picked == tuple(range(10))
    verdict, coin, _ = shared_verdict(params, updates(params, "none"))
    assert select(params, coin, verdict, set_sha256=SET_SHA256).sums == (tuple(range(13)),)


def line(*places: int) -> np.ndarray:
    """Squared distances of points on a line."""
    points = np.array(places, dtype=np.int64)
    squared: np.ndarray = (points[:, np.newaxis] - points) ** 2
    return squared


def test_distance_outliers_by_hand() -> None:
    # Medians of the others' distances (lower of two): 4, 1, 1, 4, 9 801; their median 4; limit 12.
    params = parameters(rule="distance-outliers")
    assert chosen(params, verdict_of(line(0, 1, 2, 3, 101))) == ((0, 1, 2, 3),)


def test_multi_krum_by_hand_with_ties_in_order() -> None:
    params = parameters(rule="multi-krum", num_byzantine=1, num_to_select=3)
    # Two nearest each: 1+4, 1+1, 1+1, 1+1, 1+4: the ones in the middle, ends after them.
    assert chosen(params, verdict_of(line(0, 1, 2, 3, 4))) == ((1, 2, 3),)
    one = parameters(rule="multi-krum", num_byzantine=1, num_to_select=4)
    assert chosen(one, verdict_of(line(0, 1, 2, 3, 4))) == ((0, 1, 2, 3),)


def test_large_distances_lose_low_bits_alike_and_keep_the_order() -> None:
    params = parameters(rule="multi-krum", num_byzantine=1, num_to_select=3)
    assert chosen(params, verdict_of(line(0, 1, 2, 3, 4) << 55)) == ((1, 2, 3),)


def test_failed_members_play_no_part() -> None:
    distances = line(0, 1, 2, 3, 4, 500)
    distances[2] = distances[:, 2] = -1
    params = parameters(rule="multi-krum", num_byzantine=1)
    verdict = verdict_of(distances, failed=(2,))
    assert chosen(params, verdict) == ((0, 1, 3, 4),)
    assert chosen(parameters(), verdict) == ((0, 1, 3, 4, 5),)


def test_the_mean_takes_all_that_passed() -> None:
    params = parameters(checks=Checks.NORM)
    assert chosen(params, verdict_of(failed=(3, 4))) == ((0, 1, 2, 5, 6, 7, 8, 9, 10, 11),)


@pytest.mark.parametrize("size", [2, 4, 5])
def test_groups_hold_at_least_their_size_and_less_than_twice_it(size: int) -> None:
    params = parameters(checks=Checks.NORM, group_size=size)
    sums = chosen(params, verdict_of(count=11))
    assert sorted(i for members in sums for i in members) == list(range(11))
    assert all(size <= len(members) < 2 * size for members in sums)
    other = select(params, Coin(value=bytes(32)), verdict_of(count=11), set_sha256=SET_SHA256)
    assert other.sums != sums


def test_degraded_groups_take_the_default_size() -> None:
    params = parameters(degraded=Degraded.GROUPED)
    sums = chosen(params, verdict_of(count=17), mode=SelectionMode.DEGRADED_GROUPED)
    assert sorted(map(len, sums)) == [8, 9]
    with pytest.raises(TooFewUpdatesError, match="group_size=8"):
        chosen(params, verdict_of(count=7), mode=SelectionMode.DEGRADED_GROUPED)


def test_an_unchecked_sum_ignores_the_rule() -> None:
    params = parameters(rule="multi-krum", num_byzantine=1, degraded=Degraded.UNCHECKED)
    mode = SelectionMode.DEGRADED_UNCHECKED
    assert chosen(params, verdict_of(count=5), mode=mode) == ((0, 1, 2, 3, 4),)


@pytest.mark.parametrize("allowed", list(Degraded))
def test_only_the_degraded_mode_of_the_parameters_is_allowed(allowed: Degraded) -> None:
    params = parameters(degraded=allowed)
    for mode, needed in (
        (SelectionMode.DEGRADED_GROUPED, Degraded.GROUPED),
        (SelectionMode.DEGRADED_UNCHECKED, Degraded.UNCHECKED),
    ):
        if allowed is needed:
            assert chosen(params, verdict_of(), mode=mode)
        else:
            with pytest.raises(AggregationError, match="allows"):
                chosen(params, verdict_of(), mode=mode)


def test_too_few_members_are_refused_before_and_after_the_rule() -> None:
    with pytest.raises(TooFewUpdatesError, match="2 updates passed"):
        chosen(parameters(checks=Checks.NORM), verdict_of(count=2))
    params = parameters(rule="multi-krum", num_byzantine=1, num_to_select=2)
    with pytest.raises(TooFewUpdatesError, match="2 updates were picked"):
        chosen(params, verdict_of(line(0, 1, 2, 3, 4)))
    with pytest.raises(TooFewUpdatesError):
        chosen(parameters(rule="multi-krum", num_byzantine=2), verdict_of(line(0, 1, 2, 3, 4)))


def test_rules_that_open_single_updates_or_are_unknown_are_refused() -> None:
    for rule in ("mean", "multi-krum", "distance-outliers"):
        check_rule(rule)
    with pytest.raises(AggregationError, match="single update"):
        check_rule("krum")
    with pytest.raises(AggregationError, match="distance-outliers"):
        chosen(parameters(rule="median"), verdict_of(line(0, 1, 2)))


def test_suspects_and_missing_distances_are_refused() -> None:
    suspected = Verdict(passed=(0, 1, 2), failed={}, suspects=(3,))
    with pytest.raises(AggregationError, match="suspects=1"):
        chosen(parameters(), suspected)
    with pytest.raises(AggregationError, match="needs distances"):
        chosen(parameters(rule="multi-krum"), verdict_of())
