import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregators.base import (
    Aggregate,
    AggregatorConfig,
    GradientAggregator,
    ServerKnowledge,
    Update,
)
from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.registry import RULES
from aggregators.rules.aegis import AegisState
from aggregators.rules.mean import mean
from privacy.clipping import clip_by_norm, l2_norm
from tests.aggregators.matrices import (
    Matrix,
    attack,
    cancelling_rows,
    exact_distances,
    exact_products,
    honest_rows,
    same_bits,
)
from tests.looped import looped

every_rule = pytest.mark.parametrize("rule", sorted(RULES))


def updates_of(rows: Matrix, num_samples: int = 10) -> list[Update]:
    return [
        Update(
            key=f"submission-{i:03}", vector=row, num_samples=num_samples + i, trust=1 / (1 + i % 3)
        )
        for i, row in enumerate(rows)
    ]


def knowledge_of(updates: Sequence[Update], seed: int = 1) -> ServerKnowledge:
    """Know everything a rule may ask for."""
    generator = np.random.default_rng(seed)
    dim = len(updates[0].vector)
    return ServerKnowledge(
        root_update=np.ones(dim, dtype=np.float32),
        center=np.full(dim, 0.5, dtype=np.float32),
        probe_outputs={update.key: generator.standard_normal((4, 5)) for update in updates},
        seed=seed,
    )


def assert_same(first: Aggregate, second: Aggregate) -> None:
    assert first.keys == second.keys
    assert same_bits(first.vector, second.vector)
    assert same_bits(first.weights, second.weights)
    assert same_bits(first.norms, second.norms)
    assert first.num_clipped == second.num_clipped
    assert np.array_equal(first.selected, second.selected)
    assert (first.scores is None) == (second.scores is None)
    if first.scores is not None and second.scores is not None:
        assert same_bits(first.scores, second.scores)
    assert first.state == second.state


@every_rule
@settings(max_examples=10)
@given(seed=st.integers(0, 10_000))
def test_order_of_arrival_does_not_change_a_bit(rule: str, seed: int) -> None:
    rows = honest_rows(seed, num_rows=11, dim=40)
    rows[3] *= 1000
    rows[7:9] = rows[5]
    updates = updates_of(rows)
    knowledge = knowledge_of(updates, seed)
    aggregator = GradientAggregator(
        AggregatorConfig(rule=rule, num_malicious_nodes=2, clipping_norm=6.0)
    )
    arrived = list(updates)
    random.Random(seed).shuffle(arrived)
    assert_same(aggregator.aggregate(updates, knowledge), aggregator.aggregate(arrived, knowledge))


@every_rule
def test_every_rule_answers_with_finite_arrays_in_the_order_of_the_keys(rule: str) -> None:
    updates = updates_of(honest_rows(seed=1, num_rows=11, dim=20))
    before = [update.vector.tobytes() for update in updates]
    config = AggregatorConfig(rule=rule, num_malicious_nodes=2)
    aggregate = GradientAggregator(config).aggregate(updates, knowledge_of(updates))
    assert aggregate.keys == tuple(update.key for update in updates)
    assert aggregate.vector.dtype == np.float32
    assert np.isfinite(aggregate.vector).all()
    assert aggregate.weights.dtype == aggregate.norms.dtype == np.float64
    for numbers in (aggregate.weights, aggregate.norms, aggregate.selected):
        assert numbers.shape == (11,)
        assert np.isfinite(numbers).all()
    assert aggregate.scores is None or np.isfinite(aggregate.scores).all()
    assert [update.vector.tobytes() for update in updates] == before


def test_diagnostics_are_in_the_order_of_keys() -> None:
    updates = [
        Update(key="b", vector=np.array([3.0, 4.0], dtype=np.float32), num_samples=3),
        Update(key="a", vector=np.array([0.0, 1.0], dtype=np.float32), num_samples=1),
    ]
    aggregate = GradientAggregator(AggregatorConfig()).aggregate(updates)
    assert aggregate.keys == ("a", "b")
    assert aggregate.norms.tolist() == [1.0, 5.0]
    assert aggregate.weights.tolist() == [0.25, 0.75]
    assert aggregate.vector.tolist() == [2.25, 3.25]
    assert aggregate.num_clipped == 0
    assert aggregate.gram is None
    assert aggregate.state is None


def test_inner_products_and_distances_come_with_rules_that_compute_them() -> None:
    rows = honest_rows(seed=1, num_rows=7, dim=30)
    updates = updates_of(rows)[::-1]
    config = AggregatorConfig(rule="krum", num_malicious_nodes=1)
    gram = GradientAggregator(config).aggregate(updates).gram
    assert gram is not None
    np.testing.assert_allclose(gram.inner, exact_products(rows), rtol=1e-12)
    np.testing.assert_allclose(gram.squared_distances, exact_distances(rows), rtol=1e-12)


def test_weights_are_capped() -> None:
    rows = np.array([[0.0], [1.0]], dtype=np.float32)
    updates = [
        Update(key="liar", vector=rows[1], num_samples=10**9),
        Update(key="modest", vector=rows[0], num_samples=100),
    ]
    aggregate = GradientAggregator(AggregatorConfig(max_num_samples=300)).aggregate(updates)
    assert aggregate.vector.tolist() == [0.75]


def test_trust_weighs_in_the_rule_that_asks_for_it() -> None:
    rows = np.array([[1.0], [1.0], [2.0], [2.0], [2.0]], dtype=np.float32)
    updates = [
        Update(key=str(i), vector=row, num_samples=10, trust=0.1 if row[0] == 2.0 else 1.0)
        for i, row in enumerate(rows)
    ]
    hybrid = GradientAggregator(AggregatorConfig(rule="hybrid"))
    trusted = [replace(update, trust=1.0) for update in updates]
    assert hybrid.aggregate(updates).vector.tolist() == [1.0]
    assert hybrid.aggregate(trusted).vector.tolist() == [2.0]


def test_clipping_shrinks_updates_before_the_rule() -> None:
    rows = honest_rows(seed=1, num_rows=5, dim=30)
    rows[2] *= 1000
    clip_norm = 10.0
    aggregate = GradientAggregator(AggregatorConfig(clipping_norm=clip_norm)).aggregate(
        updates_of(rows)
    )
    clipped = np.array([clip_by_norm(row, clip_norm) for row in rows])
    weights = np.arange(10.0, 15.0)
    assert same_bits(aggregate.vector, mean(clipped, weights=weights).vector)
    assert aggregate.num_clipped == 1
    np.testing.assert_allclose(aggregate.norms, [l2_norm(row) for row in rows], rtol=1e-12)


@pytest.mark.parametrize("magnitude", [1e-20, 1.0, 3e38])
def test_clipping_bounds_what_one_update_can_do(magnitude: float) -> None:
    clip_norm = 1.5e-20
    honest = honest_rows(seed=2, num_rows=9, dim=30) * np.float32(1e-22)
    rows = np.vstack([honest, np.full((1, 30), magnitude, dtype=np.float32)])
    with_one, without = (
        GradientAggregator(AggregatorConfig(clipping_norm=clip_norm)).aggregate(
            [replace(update, num_samples=7) for update in updates_of(chosen)]
        )
        for chosen in (rows, rows[:9])
    )
    moved = with_one.vector.astype(np.float64) - without.vector
    # A tenth of what it is clipped to, less a tenth of the average that was there before.
    assert np.linalg.norm(moved) <= 0.11 * clip_norm
    assert with_one.num_clipped == 1


def test_three_of_ten_scaled_by_a_thousand_are_excluded() -> None:
    honest = honest_rows(seed=3, num_rows=7, dim=30)
    rows = np.vstack([attack("times_1000", honest, 3), honest])
    config = AggregatorConfig(rule="multi-krum", num_malicious_nodes=3)
    aggregate = GradientAggregator(config).aggregate(updates_of(rows))
    assert aggregate.selected.tolist() == [False] * 3 + [True] * 7
    assert aggregate.scores is not None
    assert aggregate.scores[:3].min() > aggregate.scores[3:].max()


def exact_mean(rows: Matrix, weights: Sequence[int]) -> list[Fraction]:
    return [
        sum((Fraction(x) * w for x, w in zip(column, weights, strict=True)), Fraction())
        / sum(weights)
        for column in rows.T.tolist()
    ]


def worst_relative_error(found: Sequence[float], exact: Sequence[Fraction]) -> float:
    return max(
        float(abs(Fraction(x) - value) / abs(value)) for x, value in zip(found, exact, strict=True)
    )


def test_a_thousand_workers_from_1e_minus_8_to_1e8_are_averaged_to_1e_minus_6() -> None:
    rows = cancelling_rows(seed=4, num_rows=1000, dim=30)
    magnitudes = np.abs(rows[rows != 0.0])
    assert magnitudes.min() < 1e-7
    assert magnitudes.max() > 1e7
    updates = updates_of(rows)
    aggregate = GradientAggregator(AggregatorConfig(max_num_samples=10)).aggregate(updates)
    exact = exact_mean(rows, [10] * 1000)
    assert worst_relative_error(aggregate.vector.tolist(), exact) < 1e-6

    plain = np.zeros(30, dtype=np.float32)
    for row in rows:
        plain += row
    assert worst_relative_error((plain / np.float32(1000)).tolist(), exact) > 1e-6


def test_a_thousand_weighted_workers_are_averaged_to_1e_minus_6() -> None:
    generator = np.random.default_rng(5)
    signs = generator.choice([-1.0, 1.0], (1000, 30))
    rows = (signs * 10.0 ** generator.uniform(-8, 8, (1000, 30))).astype(np.float32)
    aggregate = GradientAggregator(AggregatorConfig()).aggregate(updates_of(rows, num_samples=1))
    exact = exact_mean(rows, range(1, 1001))
    assert worst_relative_error(aggregate.vector.tolist(), exact) < 1e-6

    plain = np.zeros(30, dtype=np.float32)
    for weight, row in enumerate(rows, start=1):
        plain += np.float32(weight) * row
    assert worst_relative_error((plain / np.float32(500_500)).tolist(), exact) > 1e-6


def test_memory_maps_give_the_same_bits_as_arrays(tmp_path: Path) -> None:
    rows = honest_rows(seed=6, num_rows=7, dim=333)
    path = tmp_path / "rows"
    rows.tofile(path)
    mapped = np.memmap(path, dtype=np.float32, mode="r", shape=rows.shape)
    aggregator = GradientAggregator(
        AggregatorConfig(rule="multi-krum", num_malicious_nodes=2, clipping_norm=18.0)
    )
    assert_same(aggregator.aggregate(updates_of(rows)), aggregator.aggregate(updates_of(mapped)))


def test_threads_may_share_an_aggregator() -> None:
    aggregator = GradientAggregator(AggregatorConfig(rule="krum", num_malicious_nodes=1))
    rounds = [updates_of(honest_rows(seed, num_rows=6, dim=50)) for seed in range(16)]
    alone = [aggregator.aggregate(updates) for updates in rounds]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(aggregator.aggregate, rounds))
    for first, second in zip(alone, together, strict=True):
        assert_same(first, second)


def test_too_many_malicious_nodes_are_a_clear_error() -> None:
    config = AggregatorConfig(rule="krum", num_malicious_nodes=4)
    updates = updates_of(honest_rows(seed=4, num_rows=10, dim=5))
    with pytest.raises(TooFewUpdatesError, match=r"must satisfy n >= 2 \* .* got n=10"):
        GradientAggregator(config).aggregate(updates)


def test_unknown_rule_is_refused_at_once() -> None:
    with pytest.raises(AggregationError, match="rule='bulian'"):
        GradientAggregator(AggregatorConfig(rule="bulian"))


def test_no_updates_are_refused() -> None:
    with pytest.raises(AggregationError, match="at least one update"):
        GradientAggregator(AggregatorConfig()).aggregate([])


@pytest.mark.parametrize(
    ("rule", "missing"),
    [
        ("fltrust", "root_update"),
        ("monna", "root_update"),
        ("fedmi", "probe_outputs"),
        ("agmami", "probe_outputs"),
    ],
)
def test_a_rule_that_lacks_knowledge_says_what(rule: str, missing: str) -> None:
    updates = updates_of(honest_rows(seed=4, num_rows=5, dim=5))
    with pytest.raises(AggregationError, match=f"needs {missing}"):
        GradientAggregator(AggregatorConfig(rule=rule)).aggregate(updates)


def test_probe_outputs_of_every_update_are_needed() -> None:
    updates = updates_of(honest_rows(seed=4, num_rows=5, dim=5))
    outputs = dict(knowledge_of(updates).probe_outputs)
    del outputs["submission-002"]
    knowledge = ServerKnowledge(probe_outputs=outputs)
    with pytest.raises(AggregationError, match=r"\['submission-002'\] missing"):
        GradientAggregator(AggregatorConfig(rule="fedmi")).aggregate(updates, knowledge)


def test_probe_outputs_of_different_shapes_are_refused() -> None:
    updates = updates_of(honest_rows(seed=4, num_rows=5, dim=5))
    outputs = dict(knowledge_of(updates).probe_outputs)
    outputs["submission-002"] = np.zeros((4, 6))
    knowledge = ServerKnowledge(probe_outputs=outputs)
    with pytest.raises(AggregationError, match=r"one shape .* \[\(4, 5\), \(4, 6\)\]"):
        GradientAggregator(AggregatorConfig(rule="fedmi")).aggregate(updates, knowledge)


def test_state_goes_to_the_rule_and_back() -> None:
    updates = updates_of(honest_rows(seed=4, num_rows=5, dim=5))
    aggregator = GradientAggregator(AggregatorConfig(rule="aegis"))
    first = aggregator.aggregate(updates).state
    assert isinstance(first, AegisState)
    assert set(first.reputations) == {update.key for update in updates}
    second = aggregator.aggregate(updates, ServerKnowledge(state=first)).state
    assert isinstance(second, AegisState)
    assert (first.round, second.round) == (1, 2)


def test_the_state_of_another_rule_is_refused() -> None:
    updates = updates_of(honest_rows(seed=4, num_rows=5, dim=5))
    with pytest.raises(AggregationError, match="state of type str"):
        GradientAggregator(AggregatorConfig(rule="aegis")).aggregate(
            updates, ServerKnowledge(state="reputations")
        )


GOOD = np.ones(3, dtype=np.float32)
SIGNALLING_NAN = np.frombuffer(bytes.fromhex("0000a07f") * 3, dtype="<f4")


@pytest.mark.parametrize("rule", ["mean", "median", "krum", "norm-threshold"])
@looped("clipping_norm", [None, 1.0])
@looped(
    "update, message",
    [
        (Update(key="a", vector=GOOD, num_samples=1), "key 'a' must be unique"),
        (Update(key="b", vector=GOOD, num_samples=0), "num_samples=0 of update 'b'"),
        (Update(key="b", vector=GOOD, num_samples=1, trust=1.5), r"trust=1.5 of update 'b'"),
        (Update(key="b", vector=GOOD, num_samples=1, trust=-0.1), r"trust=-0.1 of update 'b'"),
        (Update(key="b", vector=GOOD, num_samples=1, trust=np.nan), r"trust=nan of update 'b'"),
        (Update(key="b", vector=GOOD[:2], num_samples=1), "'b' of dim=2 must have the same"),
        (Update(key="b", vector=GOOD[:0], num_samples=1), "'b' of shape"),
        (Update(key="b", vector=GOOD.reshape(1, 3), num_samples=1), "'b' of shape"),
        (Update(key="b", vector=GOOD * np.float32("nan"), num_samples=1), "'b' must be finite"),
        (Update(key="b", vector=GOOD * np.float32("inf"), num_samples=1), "'b' must be finite"),
        (Update(key="b", vector=SIGNALLING_NAN, num_samples=1), "'b' must be finite"),
    ],
)
def test_bad_updates_are_refused_by_name(
    rule: str, clipping_norm: float | None, update: Update, message: str
) -> None:
    good = [Update(key=key, vector=GOOD, num_samples=1) for key in ("a", "c", "d")]
    config = AggregatorConfig(rule=rule, clipping_norm=clipping_norm)
    with pytest.raises(AggregationError, match=message):
        GradientAggregator(config).aggregate([*good, update])


def test_a_sample_count_that_is_not_a_number_is_refused() -> None:
    update = Update(key="b", vector=GOOD, num_samples=float("nan"))  # type: ignore[arg-type]  # under test
    with pytest.raises(AggregationError, match="num_samples=nan of update 'b'"):
        GradientAggregator(AggregatorConfig()).aggregate([update])


def test_double_precision_updates_are_refused() -> None:
    vector = np.ones(3)
    update = Update(key="b", vector=vector, num_samples=1)  # type: ignore[arg-type]  # under test
    with pytest.raises(AggregationError, match="'b' of type float64 must be float32"):
        GradientAggregator(AggregatorConfig()).aggregate([update])
