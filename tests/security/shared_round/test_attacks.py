"""Malicious devices: each is left out, and the control shows that the test is what does it."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from security.errors import InconsistentSharesError
from security.secret_sharing.field import Words
from security.secret_sharing.fixed_point import centered
from security.shared_round.opening.coins import Coin
from security.shared_round.opening.openings import OpeningValues
from security.shared_round.opening.sum_opening import open_sums
from security.shared_round.opening.vector_scan import VectorScan
from security.shared_round.opening.verdicts import FailureReason, Verdict, judge, judge_blame
from security.shared_round.opening.wrap_around import blame_part, group_part
from security.shared_round.terms.parameter_facts import Checks, ShareFormat
from security.shared_round.terms.parameter_rules import blame_bound, group_bound
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.consistency_words import extras_layout
from tests.looped import looped
from tests.security.shared_round.shared_vectors import (
    Committee,
    HeldVector,
    device_vector,
    integers,
    parameters,
    squared_norm,
    update,
)

P = 2**61 - 1


def half(params: RoundParameters) -> list[int]:
    """Four elements of 1/2 mod p: their squares add up to 1."""
    return [(P + 1) // 2] * 4 + [0] * (params.dim - 4)


def third(params: RoundParameters) -> list[int]:
    """Nine elements of 1/3 mod p."""
    return [pow(3, -1, P)] * 9 + [0] * (params.dim - 9)


def two_fifths(params: RoundParameters) -> list[int]:
    """25 elements of 2/5 mod p: their squares add up to 4."""
    return [2 * pow(5, -1, P) % P] * 25 + [0] * (params.dim - 25)


def spread(params: RoundParameters) -> list[int]:
    """Elements of sqrt(p / d): their squares add up to p and a little."""
    value = math.isqrt(P // params.dim)
    values = [value] * params.dim
    place = 0
    while (rest := P - sum(v * v for v in values)) > 0:
        step = min(value, max(1, rest // (2 * values[place] + 1)))
        values[place] += step if step < 1000 else 1000
        place = (place + 1) % params.dim
    return values


ATTACKS = [half, third, two_fifths, spread]
Attack = Callable[[RoundParameters], list[int]]


def claimed_norm(params: RoundParameters, words: Words) -> int:
    return squared_norm(params, words) % P


def attack_vector(params: RoundParameters, values: list[int], seed: int) -> Words:
    words = integers(params, values)
    claimed = claimed_norm(params, words)
    assert claimed <= params.norm_bound**2  # the attack passes the norm check mod p
    assert squared_norm(params, words) >= P
    return device_vector(params, words, seed, claimed)


def attacked(params: RoundParameters, *bad: list[int], honest: int = 6) -> Committee:
    rng = np.random.default_rng(3)
    vectors = [device_vector(params, update(params, rng), i) for i in range(honest)]
    vectors += [attack_vector(params, values, 50 + i) for i, values in enumerate(bad)]
    return Committee.of(params, vectors)


def verdict_of(group: Committee, coin: Coin, count: int) -> Verdict:
    verdict = judge(group.params, coin, count, group.openings(coin))
    return judge_blame(group.params, verdict, group.blame(coin, verdict.suspects))


@pytest.mark.parametrize("format_", list(ShareFormat))
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_wrapping_update_is_left_out_and_nobody_else(
    attack: Attack, format_: ShareFormat
) -> None:
    params = parameters(format=format_)
    group = attacked(params, attack(params))
    verdict = verdict_of(group, group.coin(), 7)
    assert verdict.failed == {6: FailureReason.WRAP}
    assert verdict.passed == (0, 1, 2, 3, 4, 5)
    assert verdict.liars == ()


@pytest.mark.parametrize("sketch_dim", [64, 256])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_wrapping_update_is_found_through_a_sketch_that_loses_much(
    attack: Attack, sketch_dim: int
) -> None:
    params = parameters(dim=3_000, sketch_dim=sketch_dim)
    group = attacked(params, attack(params))
    assert verdict_of(group, group.coin(), 7).failed == {6: FailureReason.WRAP}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_pair_that_cancels_in_the_sum_is_left_out(attack: Attack) -> None:
    params = parameters()
    values = attack(params)
    group = attacked(params, values, [-value for value in values])
    verdict = verdict_of(group, group.coin(), 8)
    assert verdict.failed == {6: FailureReason.WRAP, 7: FailureReason.WRAP}


@pytest.mark.parametrize(
    ("attack", "checks"),
    [(half, Checks.DISTANCES), *((attack, Checks.NORM) for attack in ATTACKS)],
)
def test_without_the_wrap_test_the_rest_accepts_it_and_the_sum_is_destroyed(
    attack: Attack, checks: Checks
) -> None:
    params = parameters(checks=checks)
    group = attacked(params, attack(params))
    coin = group.coin()
    blind = {
        j: OpeningValues(
            consistency=row.consistency,
            norms=row.norms,
            wraps=np.zeros_like(row.wraps),
            distances=row.distances,
        )
        for j, row in group.openings(coin).items()
    }
    verdict = judge(params, coin, 7, blind)
    assert (verdict.passed, verdict.failed) == (tuple(range(7)), {})
    if verdict.distances is not None:
        honest = verdict.distances[:6, :6]
        assert verdict.distances[6, :6].max() <= honest.max()
    # Weighted beyond any plausibility, so that the sum itself is seen.
    total = open_sums(params, group.sums([range(7)]), weights=[2**50]).sums[0]
    assert np.abs(total).max() > 50 * params.norm_bound
    with pytest.raises(InconsistentSharesError, match="more than its members"):
        open_sums(params, group.sums([range(7)]), weights=[7])


def test_a_pair_without_the_wrap_test_even_leaves_the_sum_plausible() -> None:
    params = parameters()
    values = half(params)
    group = attacked(params, values, [-value for value in values])
    total = open_sums(params, group.sums([range(8)]), weights=[8]).sums[0]
    assert np.linalg.norm(total) < 8 * params.norm_bound


def scalar_sizes(params: RoundParameters, words: Words, part: str, runs: int) -> np.ndarray:
    """Compute the scalars that a device alone would open, for many coins."""
    layout = extras_layout(params)
    sizes = []
    for run in range(runs):
        coin = Coin(value=run.to_bytes(32, "little"))
        share = VectorScan(params, coin, is_blame=True).scan(HeldVector(words=words, chunk=4096))
        masks = share.extras[layout.group_masks.start - params.dim :]
        if part == "group":
            tests = params.wrap_tests
            scalars = group_part(params, coin, 0, share.sketches, masks[:tests])
        else:
            scalars = blame_part(params, coin, 0, share.sketches, masks)
        sizes.append(np.abs(centered(scalars, params.field)))
    return np.concatenate(sizes)


@looped("part", ["group", "blame"])
@looped("attack", ATTACKS)
def test_each_scalar_catches_an_attack_with_a_probability_of_a_half(
    attack: Attack, part: str
) -> None:
    params = parameters()
    sizes = scalar_sizes(params, attack_vector(params, attack(params), 1), part, 12)
    bound = group_bound(params, 32) if part == "group" else blame_bound(params)
    passing = np.count_nonzero(sizes <= bound) / len(sizes)
    # 480 scalars: one standard deviation is 2.3 %; five of those above a half.
    assert passing < 0.62


def test_honest_members_pass_their_own_tests() -> None:
    params = parameters()
    rng = np.random.default_rng(8)
    words = device_vector(params, update(params, rng, 1.0), 5)
    sizes = scalar_sizes(params, words, "blame", 60)
    assert sizes.max() <= blame_bound(params)
    # The bound is not idle.
    assert sizes.max() > blame_bound(params) / 4


@pytest.mark.slow
@pytest.mark.parametrize("num_groups", [32, pytest.param(313, marks=pytest.mark.long)])
def test_honest_updates_pass_by_the_thousand(num_groups: int) -> None:
    params = parameters(dim=64, sketch_dim=64)
    rng = np.random.default_rng(9)
    layout = extras_layout(params)
    masks = slice(layout.group_masks.start - params.dim, layout.group_masks.stop - params.dim)
    largest = 0
    for run in range(num_groups):
        coin = Coin(value=run.to_bytes(32, "little"))
        scan = VectorScan(params, coin, is_blame=True)
        total = np.zeros(params.wrap_tests, dtype=np.int64)
        for position in range(32):
            words = device_vector(params, update(params, rng, 1.0), 32 * run + position)
            share = scan.scan(HeldVector(words=words, chunk=4096))
            part = group_part(params, coin, position, share.sketches, share.extras[masks])
            total += centered(part, params.field)
        largest = max(largest, int(np.abs(total).max()))
    assert group_bound(params, 32) / 4 < largest <= group_bound(params, 32)


def test_a_group_mask_out_of_range_is_blamed_on_its_member() -> None:
    params = parameters()
    group = attacked(params)
    rng = np.random.default_rng(3)
    vectors = [device_vector(params, update(params, rng), i) for i in range(6)]
    place = extras_layout(params).group_masks
    vectors[2][place] = integers(params, [P // 3] * params.wrap_tests)
    group = Committee.of(params, vectors)
    coin = group.coin()
    verdict = judge(params, coin, 6, group.openings(coin))
    assert verdict.suspects == (0, 1, 2, 3, 4, 5)
    assert (verdict.passed, verdict.failed) == ((), {})
    blamed = judge_blame(params, verdict, group.blame(coin, verdict.suspects))
    assert blamed.failed == {2: FailureReason.WRAP}
    assert blamed.passed == (0, 1, 3, 4, 5)
    assert blamed.suspects == ()


def test_the_norm_bound_is_exact_to_the_unit() -> None:
    params = parameters()
    bound = params.norm_bound
    rng = np.random.default_rng(3)
    vectors = [device_vector(params, update(params, rng), i) for i in range(4)]
    at = integers(params, [bound] + [0] * (params.dim - 1))
    above = integers(params, [bound, 1] + [0] * (params.dim - 2))
    vectors.append(device_vector(params, at, 4))
    vectors.append(device_vector(params, above, 5, claimed=bound**2))
    verdict = verdict_of(group := Committee.of(params, vectors), group.coin(), 6)
    assert verdict.failed == {5: FailureReason.NORM}


@pytest.mark.parametrize("bits", [[2, P - 1], [P - 2, 1]])
def test_slack_bits_that_are_not_bits_are_found(bits: list[int]) -> None:
    # 2 * 1 + (-1) * 2 = 0 and (-2) * 1 + 1 * 2 = 0: the sum with the weights is unchanged.
    params = parameters()
    rng = np.random.default_rng(3)
    vectors = [device_vector(params, update(params, rng), i) for i in range(4)]
    start = params.dim
    words = integers(params, [params.norm_bound] + [0] * (params.dim - 1))
    vectors.append(device_vector(params, words, 9))
    vectors[4][start : start + 2] = integers(params, bits)
    group = Committee.of(params, vectors)
    assert verdict_of(group, group.coin(), 5).failed == {4: FailureReason.NORM}


def test_one_flipped_share_word_is_found_wherever_it_is() -> None:
    params = parameters()
    layout = extras_layout(params)
    assert layout.consistency_mask is not None
    places = [0, params.dim - 1, params.dim + 3, layout.consistency_mask]
    places += [layout.group_masks.start, layout.blame_masks.stop - 1]
    for run, place in enumerate(places):
        group = attacked(params)
        holder = 1 + run % 5
        words = group.shares[holder][3].copy()
        words[place] ^= np.uint64(1)
        group.shares[holder][3] = words
        verdict = verdict_of(group, group.coin(), 6)
        assert verdict.failed == {3: FailureReason.INCONSISTENT}
        assert verdict.liars == ()
        assert verdict.passed == (0, 1, 2, 4, 5)


def test_an_inconsistent_member_s_group_mates_stay() -> None:
    # (3, 5) with one wrong share: its wraps are corrected; with two they do not open at all.
    params = parameters()
    group = attacked(params)
    for holder in (2, 4):
        words = group.shares[holder][1].copy()
        words[:] = words[::-1]
        group.shares[holder][1] = words
    coin = group.coin()
    verdict = judge(params, coin, 6, group.openings(coin))
    assert verdict.suspects == (0, 1, 2, 3, 4, 5)
    blamed = judge_blame(params, verdict, group.blame(coin, verdict.suspects))
    assert blamed.failed == {1: FailureReason.INCONSISTENT}
    assert blamed.passed == (0, 2, 3, 4, 5)
    assert blamed.liars == ()


def test_attacks_of_all_kinds_at_once_are_all_left_out() -> None:
    params = replace(parameters(), wrap_group=8, mask_scale=6)
    bad = [half(params), spread(params), [-v for v in half(params)], third(params)]
    group = attacked(params, *bad, honest=14)
    verdict = verdict_of(group, group.coin(), 18)
    assert verdict.failed == dict.fromkeys((14, 15, 16, 17), FailureReason.WRAP)
    assert verdict.passed == tuple(range(14))
