import random
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregators.base import Aggregate, GradientAggregator, ServerKnowledge, Update
from aggregators.compressed import (
    CompressedGradientAggregator,
    SparseUpdate,
    sparse_problem,
)
from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.registry import RULES
from aggregators.rows.sparse_rows import SparseVector
from aggregators.rules.aegis import AegisState
from tests.aggregators.matrices import Matrix, honest_rows, same_bits
from tests.looped import looped

BY_INNER_PRODUCTS = (
    "mean",
    "krum",
    "multi-krum",
    "norm-threshold",
    "geometric-median",
    "auto-geometric-median",
    "minimum-diameter",
    "centered-clipping",
    "caf",
    "fltrust",
    "monna",
    "nnm+krum",
    "nnm+mean",
    "arc+nnm+multi-krum",
    "bucketing+geometric-median",
    "clip+mean",
)
BY_COORDINATE = ("median", "trimmed-mean", "mean-around-median", "bulyan", "hybrid", "aegis")


def sparse_rows(seed: int, num_rows: int, dim: int, keep: float) -> Matrix:
    """Rows of which a share is not zero, some columns in most of them and some in few."""
    rows = honest_rows(seed, num_rows, dim)
    generator = np.random.default_rng(seed + 1)
    rows[generator.random(rows.shape) >= keep] = 0.0
    rows *= generator.uniform(0.5, 2.0, (num_rows, 1)).astype(np.float32)
    return rows


def sparse_updates(rows: Matrix, num_samples: int = 10) -> list[SparseUpdate]:
    return [
        SparseUpdate(key=f"{i:03}", vector=SparseVector.of_dense(row), num_samples=num_samples + i)
        for i, row in enumerate(rows)
    ]


def dense_updates(rows: Matrix, num_samples: int = 10) -> list[Update]:
    return [
        Update(key=f"{i:03}", vector=row, num_samples=num_samples + i) for i, row in enumerate(rows)
    ]


def config_of(rule: str, clipping_norm: float | None = None) -> AggregatorConfig:
    return AggregatorConfig(rule=rule, num_malicious_nodes=2, clipping_norm=clipping_norm)


def compressed(rule: str, updates: Sequence[SparseUpdate | Update]) -> Aggregate:
    return CompressedGradientAggregator(config_of(rule)).aggregate(updates, knowledge_of(updates))


def knowledge_of(updates: Sequence[SparseUpdate | Update]) -> ServerKnowledge:
    first = updates[0].vector
    dim = first.dim if isinstance(first, SparseVector) else len(first)
    root = np.linspace(0.5, 1.5, dim).astype(np.float32)
    return ServerKnowledge(root_update=root, center=root[::-1].copy(), seed=3)


def assert_close(found: Aggregate, expected: Aggregate) -> None:
    assert found.keys == expected.keys
    # Both round once; between, sums are added in another order.
    np.testing.assert_allclose(
        found.vector, expected.vector, rtol=1e-6, atol=1e-7 * np.abs(expected.vector).max()
    )
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.norms, expected.norms, rtol=1e-12)
    np.testing.assert_array_equal(found.selected, expected.selected)
    assert found.num_clipped == expected.num_clipped
    if found.scores is None or expected.scores is None:
        assert found.scores is None
        assert expected.scores is None
    else:
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rule", BY_INNER_PRODUCTS)
@looped("keep", [0.05, 0.4, 1.0])
@looped("clipping_norm", [None, 6.0])
def test_sparse_updates_give_what_dense_ones_do(
    rule: str, keep: float, clipping_norm: float | None
) -> None:
    rows = sparse_rows(1, num_rows=13, dim=200, keep=keep)
    config = config_of(rule, clipping_norm)
    updates = sparse_updates(rows)
    knowledge = knowledge_of(updates)
    found = CompressedGradientAggregator(config).aggregate(updates, knowledge)
    assert_close(found, GradientAggregator(config).aggregate(dense_updates(rows), knowledge))
    assert found.vector.dtype == np.float32


@pytest.mark.parametrize("rule", BY_COORDINATE)
def test_rules_that_rank_values_work_where_most_values_were_sent(rule: str) -> None:
    rows = sparse_rows(2, num_rows=13, dim=50, keep=0.8)
    updates = sparse_updates(rows)
    expected = GradientAggregator(config_of(rule)).aggregate(
        dense_updates(rows), knowledge_of(updates)
    )
    assert_close(compressed(rule, updates), expected)


@pytest.mark.parametrize("rule", [*BY_COORDINATE, "nnm+trimmed-mean", "clip+median"])
def test_rules_that_rank_values_are_refused_where_few_were_sent(rule: str) -> None:
    rows = sparse_rows(2, num_rows=13, dim=50, keep=0.3)
    message = (
        r"needs dense rows: with density=0\.\d+ below 0\.5 the zeros of coordinates that few"
        r" devices sent would outvote the senders; .* such as multi-krum"
    )
    with pytest.raises(AggregationError, match=message):
        compressed(rule, sparse_updates(rows))


def test_zeros_would_outvote_the_senders_of_a_coordinate() -> None:
    # Why those rules are refused: every device sends a tenth, all agree, the median is zero.
    rows = np.kron(np.eye(10), np.ones(4)).astype(np.float32)
    dense = GradientAggregator(AggregatorConfig(rule="median")).aggregate(dense_updates(rows))
    assert not dense.vector.any()
    assert compressed("mean", sparse_updates(rows)).vector.all()


@pytest.mark.parametrize("rule", ["mean", "multi-krum", "geometric-median", "nnm+krum"])
def test_dense_and_sparse_updates_mix(rule: str) -> None:
    rows = sparse_rows(3, num_rows=12, dim=100, keep=0.3)
    sparse, dense = sparse_updates(rows), dense_updates(rows)
    mixed: list[SparseUpdate | Update] = [*dense[::2], *sparse[1::2]]
    expected = GradientAggregator(config_of(rule)).aggregate(dense)
    assert_close(compressed(rule, mixed), expected)


@pytest.mark.parametrize("rule", ["mean", "median", "krum"])
def test_dense_updates_alone_go_the_dense_way(rule: str) -> None:
    updates = dense_updates(honest_rows(4, num_rows=9, dim=40))
    expected = GradientAggregator(config_of(rule)).aggregate(updates)
    assert same_bits(compressed(rule, updates).vector, expected.vector)


@pytest.mark.parametrize("rule", [*BY_INNER_PRODUCTS, "hybrid", "median"])
@settings(max_examples=5)
@given(seed=st.integers(0, 10_000))
def test_order_of_arrival_does_not_change_a_bit(rule: str, seed: int) -> None:
    keep = 0.9 if rule in {"hybrid", "median"} else 0.2
    rows = sparse_rows(seed, num_rows=12, dim=60, keep=keep)
    rows[5:7] = rows[4]
    updates: list[SparseUpdate | Update] = [*sparse_updates(rows)]
    updates[3] = dense_updates(rows)[3]
    arrived = list(updates)
    random.Random(seed).shuffle(arrived)
    first = CompressedGradientAggregator(config_of(rule)).aggregate(updates, knowledge_of(updates))
    second = CompressedGradientAggregator(config_of(rule)).aggregate(arrived, knowledge_of(updates))
    assert same_bits(first.vector, second.vector)
    assert same_bits(first.weights, second.weights)
    assert first.keys == second.keys


def large_updates(num_rows: int, dim: int, kept: int) -> list[SparseUpdate]:
    generator = np.random.default_rng(5)
    # All keep the same few coordinates, and some of their own.
    shared = generator.choice(dim, kept // 2, replace=False)
    updates = []
    for row in range(num_rows):
        own = generator.choice(dim, kept - kept // 2)
        indices = np.unique(np.concatenate([shared, own])).astype(np.int32)
        values = generator.standard_normal(len(indices)).astype(np.float32)
        vector = SparseVector(indices=indices, values=values, dim=dim)
        updates.append(SparseUpdate(key=f"{row:03}", vector=vector, num_samples=1 + row))
    return updates


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    ["mean", "krum", "multi-krum", "norm-threshold", "geometric-median", "clip+krum"],
)
def test_no_matrix_of_all_updates_is_made(rule: str) -> None:
    dim, num_rows = 1 << 24, 24
    updates = large_updates(num_rows, dim, kept=100)
    aggregator = CompressedGradientAggregator(config_of(rule, clipping_norm=9.0))
    tracemalloc.start()
    try:
        found = aggregator.aggregate(updates)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The result is 64 MiB; the rows laid out would be 24 of those.
    assert peak < 1.5 * 4 * dim
    used = np.unique(np.concatenate([update.vector.indices for update in updates]))
    assert set(np.flatnonzero(found.vector)) <= set(used.tolist())
    small = [
        Update(
            key=update.key,
            vector=laid_out(update.vector, used),
            num_samples=update.num_samples,
        )
        for update in updates
    ]
    expected = GradientAggregator(config_of(rule, clipping_norm=9.0)).aggregate(small)
    np.testing.assert_allclose(found.vector[used], expected.vector, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(found.selected, expected.selected)


def laid_out(
    vector: SparseVector, columns: np.ndarray[tuple[int, ...], np.dtype[np.int32]]
) -> Matrix:
    row = np.zeros(len(columns), dtype=np.float32)
    row[np.searchsorted(columns, vector.indices)] = vector.values
    return row


def test_updates_without_an_entry_are_zeros() -> None:
    rows = np.zeros((7, 9), dtype=np.float32)
    rows[0, 3] = 14.0
    assert compressed("mean", sparse_updates(rows, num_samples=10**6)).vector[3] == 2.0
    assert not compressed("krum", sparse_updates(rows)).vector.any()
    rows[0, 3] = 0.0
    for rule in ("mean", "krum", "geometric-median", "norm-threshold", "centered-clipping"):
        found = CompressedGradientAggregator(config_of(rule)).aggregate(sparse_updates(rows))
        assert not found.vector.any()
        assert np.isfinite(found.weights).all()


def test_knowledge_and_state_reach_the_rule() -> None:
    updates = sparse_updates(sparse_rows(6, num_rows=9, dim=30, keep=0.9))
    aggregator = CompressedGradientAggregator(config_of("aegis"))
    state = aggregator.aggregate(updates).state
    assert isinstance(state, AegisState)
    assert set(state.reputations) == {update.key for update in updates}
    again = aggregator.aggregate(updates, ServerKnowledge(state=state)).state
    assert isinstance(again, AegisState)
    assert again.round == 2


def sparse_update(key: str, dim: int = 9, num_samples: int = 1, trust: float = 1.0) -> SparseUpdate:
    vector = SparseVector(
        indices=np.array([1, 4], dtype=np.int64), values=np.ones(2, dtype=np.float32), dim=dim
    )
    return SparseUpdate(key=key, vector=vector, num_samples=num_samples, trust=trust)


GOOD = np.ones(9, dtype=np.float32)


@looped(
    "updates, message",
    [
        ([], "at least one update"),
        ([sparse_update("a"), sparse_update("a")], "key 'a' must be unique"),
        ([sparse_update("a"), Update(key="a", vector=GOOD, num_samples=1)], "key 'a' must be"),
        ([sparse_update("a", num_samples=0)], "num_samples=0 of update 'a'"),
        ([sparse_update("a", trust=2.0)], r"trust=2.0 of update 'a'"),
        ([sparse_update("a"), sparse_update("b", dim=8)], "'b' of dim=8 .* 'a' of dim=9"),
        (
            [sparse_update("a"), Update(key="b", vector=GOOD[:5], num_samples=1)],
            "'b' of dim=5 must have the same dimension",
        ),
        (
            [sparse_update("a"), Update(key="b", vector=GOOD * np.float32(np.nan), num_samples=1)],
            "update 'b': .*finite",
        ),
        (
            [sparse_update("a"), Update(key="b", vector=GOOD.reshape(3, 3), num_samples=1)],
            "update 'b': vector of",
        ),
        (
            [sparse_update("a"), Update(key="b", vector=GOOD[:0], num_samples=1)],
            "update 'b': dim=0",
        ),
    ],
)
def test_bad_updates_are_refused_by_name(
    updates: list[SparseUpdate | Update], message: str
) -> None:
    with pytest.raises(AggregationError, match=message):
        CompressedGradientAggregator(AggregatorConfig()).aggregate(updates)


def test_unknown_rule_is_refused_at_once() -> None:
    with pytest.raises(AggregationError, match="rule='bulian'"):
        CompressedGradientAggregator(AggregatorConfig(rule="bulian"))


def test_too_few_updates_are_a_clear_error() -> None:
    updates = sparse_updates(sparse_rows(7, num_rows=6, dim=9, keep=0.5))
    with pytest.raises(TooFewUpdatesError, match="got n=6"):
        compressed("krum", updates)


def updates_with(share: float) -> list[SparseUpdate]:
    rng = np.random.default_rng(0)
    dim, sent = 200, int(200 * share)
    return [
        SparseUpdate(
            key=f"d{index:02d}",
            num_samples=1,
            vector=SparseVector(
                indices=np.sort(rng.choice(dim, sent, replace=False)),
                values=rng.normal(size=sent).astype(np.float32),
                dim=dim,
            ),
        )
        for index in range(20)
    ]


PIPELINES = ("clip+nnm+mean", "nnm+clip+mean", "bucketing+arc+mean", "nnm+hybrid", "nnm+median")


@looped("share", [0.1, 0.6])
@pytest.mark.parametrize("rule", [*sorted(RULES), *PIPELINES])
def test_the_rules_that_rank_coordinates_are_known(rule: str, share: float) -> None:
    config = AggregatorConfig(rule=rule, num_malicious_nodes=2)
    known = ServerKnowledge(
        root_update=np.ones(200, np.float32),
        center=np.zeros(200, np.float32),
        probe_outputs={
            update.key: np.full((3, 2), 0.5) + 1e-3 * index
            for index, update in enumerate(updates_with(share))
        },
    )
    is_refused = False
    try:
        CompressedGradientAggregator(config).aggregate(updates_with(share), known)
    except AggregationError as error:
        is_refused = "needs dense rows" in str(error) or "averages of sparse" in str(error)
    assert (sparse_problem(config, ratio=share) is not None) is is_refused
