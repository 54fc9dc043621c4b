import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators import Aggregate, AggregationError, AggregatorConfig, GradientAggregator, Update
from aggregators.errors import TooFewUpdatesError
from aggregators.registry import RULES
from aggregators.rules.mean import mean
from privacy.clipping import clip_by_norm, l2_norm
from tests.aggregators.matrices import Matrix, attack, honest_rows, same_bits


def updates_of(rows: Matrix, num_samples: int = 10) -> list[Update]:
    return [
        Update(key=f"submission-{i:03}", vector=row, num_samples=num_samples + i)
        for i, row in enumerate(rows)
    ]


def assert_same(first: Aggregate, second: Aggregate) -> None:
    assert first.keys == second.keys
    assert same_bits(first.vector, second.vector)
    assert same_bits(first.weights, second.weights)
    assert same_bits(first.norms, second.norms)
    assert first.num_clipped == second.num_clipped
    assert np.array_equal(first.selected, second.selected)


@pytest.mark.parametrize("rule", sorted(RULES))
@given(seed=st.integers(0, 10_000))
def test_order_of_arrival_does_not_change_a_bit(rule: str, seed: int) -> None:
    rows = honest_rows(seed, num_rows=9, dim=40)
    rows[3] *= 1000
    updates = updates_of(rows)
    config = AggregatorConfig(rule=rule, num_malicious_nodes=2, clipping_norm=6.0)
    aggregator = GradientAggregator(config)
    arrived = list(updates)
    random.Random(seed).shuffle(arrived)
    assert_same(aggregator.aggregate(updates), aggregator.aggregate(arrived))


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


def test_weights_are_capped() -> None:
    rows = np.array([[0.0], [1.0]], dtype=np.float32)
    updates = [
        Update(key="liar", vector=rows[1], num_samples=10**9),
        Update(key="modest", vector=rows[0], num_samples=100),
    ]
    aggregate = GradientAggregator(AggregatorConfig(max_num_samples=300)).aggregate(updates)
    assert aggregate.vector.tolist() == [0.75]


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
    assert aggregate.norms.tolist() == [l2_norm(row) for row in rows]


def test_clipping_bounds_what_one_update_can_do() -> None:
    honest = honest_rows(seed=2, num_rows=9, dim=30)
    rows = np.vstack([honest, attack("plus_1e30", honest, 1)])
    aggregate = GradientAggregator(AggregatorConfig(clipping_norm=1.0)).aggregate(
        updates_of(rows, num_samples=1000)
    )
    assert np.linalg.norm(aggregate.vector) <= 1.0


def test_three_of_ten_scaled_by_a_thousand_are_excluded() -> None:
    honest = honest_rows(seed=3, num_rows=7, dim=30)
    rows = np.vstack([attack("times_1000", honest, 3), honest])
    config = AggregatorConfig(rule="multi-krum", num_malicious_nodes=3)
    aggregate = GradientAggregator(config).aggregate(updates_of(rows))
    assert aggregate.selected.tolist() == [False] * 3 + [True] * 7
    assert aggregate.scores is not None
    assert aggregate.scores[:3].min() > aggregate.scores[3:].max()


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


GOOD = np.ones(3, dtype=np.float32)
SIGNALLING_NAN = np.frombuffer(bytes.fromhex("0000a07f") * 3, dtype="<f4")


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (Update(key="a", vector=GOOD, num_samples=1), "key 'a' must be unique"),
        (Update(key="b", vector=GOOD, num_samples=0), "num_samples=0 of update 'b'"),
        (Update(key="b", vector=GOOD[:2], num_samples=1), "'b' of dim=2 must have the same"),
        (Update(key="b", vector=GOOD[:0], num_samples=1), "'b' of shape"),
        (Update(key="b", vector=GOOD.reshape(1, 3), num_samples=1), "'b' of shape"),
        (Update(key="b", vector=GOOD * np.float32("nan"), num_samples=1), "'b' must be finite"),
        (Update(key="b", vector=GOOD * np.float32("inf"), num_samples=1), "'b' must be finite"),
        (Update(key="b", vector=SIGNALLING_NAN, num_samples=1), "'b' must be finite"),
    ],
)
def test_bad_updates_are_refused_by_name(update: Update, message: str) -> None:
    updates = [Update(key="a", vector=GOOD, num_samples=1), update]
    with pytest.raises(AggregationError, match=message):
        GradientAggregator(AggregatorConfig()).aggregate(updates)


def test_double_precision_updates_are_refused() -> None:
    vector = np.ones(3)
    update = Update(key="b", vector=vector, num_samples=1)  # type: ignore[arg-type]  # under test
    with pytest.raises(AggregationError, match="'b' of type float64 must be float32"):
        GradientAggregator(AggregatorConfig()).aggregate([update])
