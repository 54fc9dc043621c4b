import itertools
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregators.base import Aggregate, GradientAggregator, ServerKnowledge, Update
from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.pipeline import make_rule
from aggregators.registry import STEPS, traits_of
from aggregators.rows.dense_rows import as_rows
from aggregators.rule import Context, RuleResult
from aggregators.rules.aegis import AegisState, aegis
from aggregators.rules.hybrid import hybrid
from tests.aggregators.matrices import (
    TIED_FLOAT,
    Floats,
    Matrix,
    attack,
    brute_force_krum_scores,
    brute_force_median,
    brute_force_trimmed_mean,
    exact_distances,
    honest_rows,
    matrices,
    same_bits,
    scaled_rows,
)
from tests.looped import looped

LINEAR = (
    "nnm+mean",
    "nnm+krum",
    "nnm+geometric-median",
    "arc+mean",
    "arc+nnm+krum",
    "arc+nnm+multi-krum",
    "clip+mean",
    "clip+nnm+multi-krum",
    "nnm+clip+mean",
    "nnm+nnm+krum",
    "bucketing+mean",
    "bucketing+krum",
    "bucketing+nnm+multi-krum",
    "clip+bucketing+geometric-median",
    "nnm+norm-threshold",
)
"""Pipelines whose result is a combination of the rows."""

OTHERS = (
    "nnm+trimmed-mean",
    "nnm+median",
    "arc+nnm+mean-around-median",
    "bucketing+median",
    "clip+hybrid",
    "arc+bucketing+trimmed-mean",
    "clip+sign-guard",
    "nnm+dnc",
)


def apply(
    rule: str,
    rows: Matrix,
    *,
    num_byzantine: int = 2,
    bucket_size: int = 2,
    context: Context | None = None,
    seed: int = 7,
) -> RuleResult:
    config = AggregatorConfig(rule=rule, num_malicious_nodes=num_byzantine, bucket_size=bucket_size)
    known = Context(weights=np.ones(len(rows)), seed=seed) if context is None else context
    return make_rule(config)(as_rows(rows), known)


def mixed_by_nearest(rows: Matrix, num_byzantine: int) -> Matrix:
    """Allouah et al. (2023), Algorithm 2, literally; no ties."""
    distances = exact_distances(rows)
    nearest = np.argsort(distances, axis=1)[:, : len(rows) - num_byzantine]
    wide = rows.astype(np.float64)
    return np.array([wide[places].mean(axis=0) for places in nearest]).astype(np.float32)


def arc(rows: Matrix, num_byzantine: int) -> Matrix:
    """Allouah et al. (2024), Algorithm 2, literally."""
    count = len(rows)
    norms = np.sqrt(np.square(rows.astype(np.float64)).sum(axis=1))
    num_clipped = int(2 * num_byzantine / count * (count - num_byzantine))
    bound = np.sort(norms)[::-1][num_clipped]
    return scaled_rows(rows, np.minimum(1.0, bound / norms))


def assert_close(found: Matrix, expected: Matrix) -> None:
    # Both are rounded to float32 once, from sums that were added in another order.
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=1e-7 * np.abs(expected).max())


def hostile_rows(seed: int, num_rows: int = 11, dim: int = 30) -> Matrix:
    honest = honest_rows(seed, num_rows - 2, dim)
    honest *= np.linspace(0.5, 2.0, num_rows - 2, dtype=np.float32)[:, np.newaxis]
    return np.vstack([honest, attack("times_1000", honest, 1), attack("copies_far", honest, 1)])


@pytest.mark.parametrize("seed", range(3))
def test_nearest_neighbour_mixing_then_trimmed_mean(seed: int) -> None:
    rows = hostile_rows(seed)
    expected = brute_force_trimmed_mean(mixed_by_nearest(rows, 2), 2)
    assert_close(apply("nnm+trimmed-mean", rows).vector, expected)


@pytest.mark.parametrize("seed", range(3))
def test_adaptive_clipping_then_mixing_then_krum(seed: int) -> None:
    rows = hostile_rows(seed)
    clipped = arc(rows, 2)
    mixed = mixed_by_nearest(clipped, 2)
    scores = brute_force_krum_scores(mixed, 2)
    found = apply("arc+nnm+krum", rows)
    assert_close(found.vector, mixed[int(np.argmin(scores))])
    winners = np.flatnonzero(found.weights > 0.0)
    nearest = np.argsort(exact_distances(clipped), axis=1)[int(np.argmin(scores)), :9]
    assert winners.tolist() == sorted(nearest.tolist())
    assert found.selected.tolist() == (found.weights > 0.0).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_clipping_then_the_hybrid_rule(seed: int) -> None:
    rows = hostile_rows(seed)
    weights = np.arange(1.0, 12.0)
    trust = np.linspace(0.2, 1.0, 11)
    norms = np.sqrt(np.square(rows.astype(np.float64)).sum(axis=1))
    clipped = scaled_rows(rows, np.minimum(1.0, 1.5 * np.median(norms) / norms))
    found = apply("clip+hybrid", rows, context=Context(weights=weights, trust=trust))
    expected = hybrid(clipped, num_byzantine=2, weights=weights, trust=trust)
    assert_close(found.vector, expected.vector)
    np.testing.assert_array_equal(found.selected, expected.selected)


@pytest.mark.parametrize("seed", range(5))
def test_bucketing_then_median_is_the_median_of_the_means_of_some_partition(seed: int) -> None:
    rows = hostile_rows(1, num_rows=6)
    found = apply("bucketing+median", rows, num_byzantine=1, seed=seed).vector
    possible = []
    for order in itertools.permutations(range(6)):
        if order[0] < order[1] and order[2] < order[3] and order[4] < order[5]:
            pairs = rows.astype(np.float64)[list(order)].reshape(3, 2, -1)
            possible.append(brute_force_median(pairs.mean(axis=1).astype(np.float32)))
    assert any(np.allclose(found, each, rtol=3e-7) for each in possible)


def test_the_seed_decides_the_buckets() -> None:
    rows = hostile_rows(1)
    vectors = {apply("bucketing+median", rows, seed=seed).vector.tobytes() for seed in range(8)}
    assert len(vectors) > 4
    again = {apply("bucketing+median", rows, seed=3).vector.tobytes() for _ in range(3)}
    assert len(again) == 1


@pytest.mark.parametrize("bucket_size", [1, 2, 3, 4, 5])
def test_the_mean_of_buckets_is_the_plain_mean_also_where_one_is_not_full(bucket_size: int) -> None:
    rows = honest_rows(1, num_rows=11, dim=30)
    found = apply("bucketing+mean", rows, num_byzantine=1, bucket_size=bucket_size)
    expected = rows.astype(np.float64).mean(axis=0).astype(np.float32)
    assert_close(found.vector, expected)
    np.testing.assert_allclose(found.weights, np.full(11, 1 / 11), rtol=1e-14)


@pytest.mark.parametrize("rule", LINEAR)
@settings(max_examples=10)
@given(seed=st.integers(0, 10_000))
def test_weights_of_the_rows_given_add_up_to_the_result(rule: str, seed: int) -> None:
    rows = hostile_rows(seed, num_rows=15)
    found = apply(rule, rows)
    combined = (found.weights[:, np.newaxis] * rows.astype(np.float64)).sum(axis=0)
    # Clipped and mixed rows are rounded to float32 before the rule sees them.
    sizes = (found.weights[:, np.newaxis] * np.abs(rows.astype(np.float64))).sum(axis=0)
    assert (np.abs(found.vector - combined) <= 2.0**-22 * sizes).all()
    assert found.selected.tolist() == (found.weights > 0.0).tolist()


@pytest.mark.parametrize("rule", [*LINEAR, *OTHERS])
def test_answers_are_one_for_each_row_given(rule: str) -> None:
    rows = hostile_rows(3, num_rows=15)
    found = apply(rule, rows)
    assert found.vector.shape == (30,)
    assert found.vector.dtype == np.float32
    assert found.weights.shape == found.selected.shape == (15,)
    assert found.selected.dtype == np.bool_
    assert 0.0 < found.weights.sum() <= 1.0 + 1e-12
    assert (found.weights >= 0.0).all()
    if found.scores is not None:
        assert found.scores.shape == (15,)
        assert not np.isnan(found.scores).any()


def test_a_row_has_the_least_score_of_those_it_takes_part_in() -> None:
    rows = hostile_rows(4)
    mixed = mixed_by_nearest(rows, 2)
    scores = brute_force_krum_scores(mixed, 2)
    nearest = np.argsort(exact_distances(rows), axis=1)[:, :9]
    expected = [
        min(score for score, places in zip(scores, nearest.tolist(), strict=True) if row in places)
        for row in range(11)
    ]
    found = apply("nnm+krum", rows)
    assert found.scores is not None
    np.testing.assert_allclose(found.scores, expected, rtol=1e-6)


def test_clipped_rows_keep_their_own_scores() -> None:
    rows = hostile_rows(4)
    found = apply("arc+krum", rows)
    assert found.scores is not None
    np.testing.assert_allclose(found.scores, brute_force_krum_scores(arc(rows, 2), 2), rtol=1e-6)


def test_rows_clipped_to_nothing_count_as_not_selected() -> None:
    rows = np.zeros((5, 3), dtype=np.float32)
    rows[3] = 1e30
    found = apply("clip+mean", rows)
    assert found.vector.tolist() == [0.0, 0.0, 0.0]
    assert found.selected.tolist() == [True, True, True, False, True]
    assert found.weights.tolist() == [0.2, 0.2, 0.2, 0.0, 0.2]


def assert_permuted(first: RuleResult, second: RuleResult, order: list[int]) -> None:
    assert same_bits(first.vector, second.vector)
    assert same_bits(first.weights[order], second.weights)
    assert np.array_equal(first.selected[order], second.selected)
    if first.scores is None or second.scores is None:
        assert first.scores is None
        assert second.scores is None
    else:
        assert same_bits(first.scores[order], second.scores)


def shuffled(count: int, random: Random) -> list[int]:
    order = list(range(count))
    random.shuffle(order)
    return order


@pytest.mark.parametrize("rule", [*LINEAR, *OTHERS])
@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), random=st.randoms(use_true_random=False))
def test_order_of_rows_does_not_change_a_bit(rule: str, seed: int, random: Random) -> None:
    rows = hostile_rows(seed, num_rows=15)
    weights = np.random.default_rng(seed).integers(1, 100, 15).astype(np.float64)
    order = shuffled(15, random)
    assert_permuted(
        apply(rule, rows, context=Context(weights=weights, seed=seed)),
        apply(rule, rows[order], context=Context(weights=weights[order], seed=seed)),
        order,
    )


@pytest.mark.parametrize("rule", [*LINEAR, *OTHERS])
@settings(max_examples=10)
@given(
    rows=matrices(min_rows=15, max_rows=15, elements=TIED_FLOAT),
    random=st.randoms(use_true_random=False),
)
def test_order_of_equal_rows_of_different_weight_does_not_change_a_bit(
    rule: str, rows: Matrix, random: Random
) -> None:
    rows[5:8] = rows[4]
    weights, trust = np.arange(1.0, 16.0), np.linspace(1.0, 0.1, 15)
    order = shuffled(15, random)
    assert_permuted(
        apply(rule, rows, context=Context(weights=weights, trust=trust)),
        apply(rule, rows[order], context=Context(weights=weights[order], trust=trust[order])),
        order,
    )


@pytest.mark.parametrize(
    "rule", ["nnm+trimmed-mean", "nnm+median", "arc+nnm+krum", "clip+hybrid", "nnm+multi-krum"]
)
@looped("name", ["times_1000", "plus_1e30", "alternating_1e30", "both_ends"])
def test_robust_pipelines_stay_near_the_honest_rows(rule: str, name: str) -> None:
    honest = honest_rows(5, num_rows=9, dim=20)
    rows = np.vstack([attack(name, honest, 4), honest])
    vector = apply(rule, rows, num_byzantine=4).vector
    slack = 3.0 * float(np.sqrt(exact_distances(honest).max()))
    assert (np.abs(vector - honest.astype(np.float64).mean(axis=0)) <= slack).all()


def updates_of(rows: Matrix) -> list[Update]:
    return [Update(key=f"{i:02}", vector=row, num_samples=1 + i) for i, row in enumerate(rows)]


def aggregate(rule: str, updates: list[Update], knowledge: ServerKnowledge) -> Aggregate:
    config = AggregatorConfig(rule=rule, num_malicious_nodes=1)
    return GradientAggregator(config).aggregate(updates, knowledge)


@pytest.mark.parametrize("rule", [*LINEAR, *OTHERS])
def test_pipelines_run_in_the_aggregator_whatever_the_server_knows(rule: str) -> None:
    updates = updates_of(hostile_rows(6, num_rows=15))
    generator = np.random.default_rng(6)
    knowledge = ServerKnowledge(
        root_update=updates[0].vector,
        center=updates[0].vector,
        probe_outputs={update.key: generator.standard_normal((4, 5)) for update in updates},
        seed=6,
    )
    knowing = aggregate(rule, updates, knowledge)
    not_knowing = aggregate(rule, updates, ServerKnowledge(seed=6))
    assert same_bits(knowing.vector, not_knowing.vector)
    assert knowing.keys == tuple(update.key for update in updates)


def test_a_rule_that_remembers_devices_knows_them_after_clipping() -> None:
    rows = hostile_rows(7)
    found = aggregate("clip+aegis", updates_of(rows)[::-1], ServerKnowledge())
    norms = np.sqrt(np.square(rows.astype(np.float64)).sum(axis=1))
    clipped = scaled_rows(rows, np.minimum(1.0, 1.5 * np.median(norms) / norms))
    names = [f"{i:02}" for i in range(11)]
    expected = aegis(clipped, num_samples=np.arange(1.0, 12.0), keys=names)
    assert_close(found.vector, expected.vector)
    assert isinstance(found.state, AegisState)
    assert isinstance(expected.state, AegisState)
    assert found.state.reputations == pytest.approx(expected.state.reputations)


def test_a_root_update_is_compared_with_clipped_rows() -> None:
    rows = hostile_rows(7)
    root = np.ones(30, dtype=np.float32)
    known = Context(weights=np.ones(11), root_update=root)
    found = apply("arc+fltrust", rows, context=known)
    direct = apply("fltrust", arc(rows, 2), context=known)
    assert_close(found.vector, direct.vector)
    combined: Floats = (found.weights[:, np.newaxis] * rows.astype(np.float64)).sum(axis=0)
    np.testing.assert_allclose(found.vector, combined, rtol=1e-6)


def test_mixed_rows_keep_the_trust_of_the_row_they_are_mixed_around() -> None:
    rows = hostile_rows(8)
    weights, trust = np.ones(11), np.linspace(0.1, 1.0, 11)
    found = apply("nnm+hybrid", rows, context=Context(weights=weights, trust=trust))
    direct = hybrid(mixed_by_nearest(rows, 2), num_byzantine=2, weights=weights, trust=trust)
    mixing = np.zeros((11, 11))
    np.put_along_axis(mixing, np.argsort(exact_distances(rows), axis=1)[:, :9], 1 / 9, axis=1)
    assert_close(found.vector, direct.vector)
    np.testing.assert_allclose(found.weights, direct.weights @ mixing, rtol=1e-12)


@pytest.mark.parametrize("rule", ["aegis", "fedmi", "agmami"])
@looped("steps", ["bucketing", "clip+bucketing", "bucketing+nnm"])
def test_rules_that_know_single_updates_are_refused_buckets_at_once(steps: str, rule: str) -> None:
    config = AggregatorConfig(rule=f"{steps}+{rule}")
    with pytest.raises(AggregationError, match=f"bucketing must not come before {rule}"):
        make_rule(config)


def test_steps_are_those_that_are_documented() -> None:
    assert sorted(STEPS) == ["arc", "bucketing", "clip", "nnm"]


@looped(
    "rule, message",
    [
        ("nmn+mean", r"rule='nmn\+mean': step 'nmn' must be one of arc, bucketing, clip, nnm"),
        ("+mean", r"step '' must be one of"),
        ("nnm++mean", r"step '' must be one of"),
        ("median+mean", r"step 'median' must be one of"),
        ("nnm+meen", r"rule='nnm\+meen': rule='meen' must be one of aegis, agmami"),
        ("nnm+", r"rule='' must be one of"),
        ("", r"rule='' must be one of"),
        ("nnm + mean", r"step 'nnm ' must be one of"),
    ],
)
def test_unknown_steps_and_rules_are_refused_with_the_known_ones(rule: str, message: str) -> None:
    with pytest.raises(AggregationError, match=message):
        make_rule(AggregatorConfig(rule=rule))
    with pytest.raises(AggregationError, match=message):
        traits_of(rule)


@pytest.mark.parametrize("rule", ["nnm+mean", "arc+mean", "bucketing+mean"])
def test_steps_refuse_too_few_rows_for_f(rule: str) -> None:
    with pytest.raises(TooFewUpdatesError, match="n=4"):
        apply(rule, honest_rows(9, num_rows=4, dim=3))


def test_the_rule_is_given_as_many_rows_as_there_are_buckets() -> None:
    with pytest.raises(TooFewUpdatesError, match=r"of krum .* got n=6"):
        apply("bucketing+krum", honest_rows(9, num_rows=12, dim=3))


@pytest.mark.parametrize("rule", [*LINEAR, *OTHERS])
@looped("value", [0.0, -0.0, 1e-40, 3e38])
def test_equal_rows_are_their_own_aggregate(rule: str, value: float) -> None:
    rows = np.full((15, 3), value, dtype=np.float32)
    found = apply(rule, rows)
    np.testing.assert_allclose(found.vector, rows[0], rtol=3e-7, atol=1e-45)
    assert np.isfinite(found.weights).all()


@pytest.mark.parametrize("rule", ["nnm+centered-clipping", "clip+nnm+fltrust", "nnm+monna"])
def test_a_rule_after_mixing_may_look_at_one_more_row(rule: str) -> None:
    rows = honest_rows(seed=21, num_rows=9, dim=300)
    near = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    config = AggregatorConfig(rule=rule, num_malicious_nodes=2)
    context = Context(weights=np.ones(9), root_update=near, center=near)
    result = make_rule(config)(as_rows(rows), context)
    assert np.linalg.norm(result.vector - near) < np.linalg.norm(rows - near, axis=1).max()


def test_unknown_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(AggregationError, match=r"rule='meen' must be one of aegis, .*, mean, "):
        make_rule(AggregatorConfig(rule="meen"))
    with pytest.raises(AggregationError, match=r"rule='nnm\+meen': rule='meen' must be one of"):
        traits_of("nnm+meen")


@pytest.mark.parametrize("rule", ["nmm+mean", "+mean", "mean+nnm", "krum+mean"])
def test_unknown_step_is_refused_with_the_known_ones(rule: str) -> None:
    with pytest.raises(AggregationError, match="must be one of"):
        make_rule(AggregatorConfig(rule=rule))
