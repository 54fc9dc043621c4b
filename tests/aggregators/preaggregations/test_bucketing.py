from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.preaggregations.bucketing import bucketing, bucketing_matrix
from aggregators.rules.mean import mean
from tests.aggregators.matrices import TIED_FLOAT, Matrix, honest_rows, matrices, same_bits
from tests.peers import byzfl

# Every entry is rounded once to float32.
ROUNDING = 2.0**-23


@given(st.integers(0, 10_000), st.integers(1, 20), st.data())
def test_matrix_averages_a_partition(seed: int, num_rows: int, data: st.DataObject) -> None:
    bucket_size = data.draw(st.integers(1, num_rows))
    matrix, sizes = bucketing_matrix(num_rows, bucket_size=bucket_size, seed=seed)
    members = matrix > 0
    assert (members.sum(axis=0) == 1).all()
    full, rest = divmod(num_rows, bucket_size)
    assert sizes.tolist() == [bucket_size] * full + [rest] * (rest > 0)
    np.testing.assert_array_equal(members.sum(axis=1), sizes)
    np.testing.assert_array_equal(matrix, members / sizes[:, np.newaxis])


@pytest.mark.peers
@pytest.mark.parametrize(("num_rows", "bucket_size"), [(6, 2), (12, 3), (5, 5), (4, 1)])
def test_agrees_with_byzfl_where_buckets_are_full(
    num_rows: int, bucket_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = honest_rows(seed=1, num_rows=num_rows, dim=5)
    ours = bucketing(rows, bucket_size=bucket_size, seed=11)
    drawn = np.concatenate([np.flatnonzero(bucket) for bucket in ours.matrix])
    monkeypatch.setattr(np.random, "permutation", lambda vectors: vectors[drawn])
    theirs = byzfl.Bucketing(bucket_size)(rows.astype(np.float64))
    np.testing.assert_allclose(ours.rows.read(0, 5), theirs, rtol=ROUNDING)


@given(st.integers(0, 10_000), st.integers(1, 12), st.data())
def test_mean_weighted_by_sizes_is_the_mean_of_the_rows(
    seed: int, num_rows: int, data: st.DataObject
) -> None:
    bucket_size = data.draw(st.integers(1, num_rows))
    rows = honest_rows(seed, num_rows, dim=6)
    buckets = bucketing(rows, bucket_size=bucket_size, seed=seed)
    weighted = mean(buckets.rows, weights=buckets.sizes).vector
    np.testing.assert_allclose(weighted, mean(rows).vector, rtol=1e-6)
    # byzfl gives a short last bucket the weight of a full one: then the mean moves.
    shares = buckets.sizes @ buckets.matrix / num_rows
    np.testing.assert_allclose(shares, np.full(num_rows, 1.0 / num_rows))


@given(matrices(elements=TIED_FLOAT), st.integers(0, 99), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_change_a_bit(rows: Matrix, seed: int, random: Random) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    bucket_size = 1 + seed % len(rows)
    first = bucketing(rows, bucket_size=bucket_size, seed=seed)
    second = bucketing(rows[order], bucket_size=bucket_size, seed=seed)
    dim = rows.shape[1]
    assert same_bits(first.rows.read(0, dim), second.rows.read(0, dim))
    assert first.sizes.tolist() == second.sizes.tolist()


def test_matrix_is_in_the_order_of_the_rows() -> None:
    rows = honest_rows(seed=2, num_rows=7, dim=4)
    buckets = bucketing(rows, bucket_size=2, seed=5)
    expected = buckets.matrix @ rows.astype(np.float64)
    np.testing.assert_allclose(buckets.rows.read(0, 4), expected, rtol=ROUNDING)


def test_any_two_rows_meet_equally_often() -> None:
    num_seeds, expected = 1000, 1 / 5
    together = np.zeros((6, 6))
    for seed in range(num_seeds):
        members = bucketing_matrix(6, bucket_size=2, seed=seed)[0] > 0
        together += members.T.astype(float) @ members
    rates = together[np.triu_indices(6, 1)] / num_seeds
    # Six standard deviations.
    tolerance = 6 * np.sqrt(expected * (1 - expected) / num_seeds)
    assert (abs(rates - expected) < tolerance).all()


@given(st.integers(0, 10_000), st.integers(3, 30), st.data())
def test_fewer_than_half_of_the_buckets_hold_one_of_f_rows(
    seed: int, num_rows: int, data: st.DataObject
) -> None:
    num_byzantine = data.draw(st.integers(1, (num_rows - 1) // 2))
    bucket_size = data.draw(st.integers(1, (num_rows - 1) // (2 * num_byzantine)))
    rows = np.zeros((num_rows, 1), dtype=np.float32)
    rows[:num_byzantine] = 1.0
    buckets = bucketing(rows, bucket_size=bucket_size, seed=seed, num_byzantine=num_byzantine)
    spoiled = buckets.rows.read(0, 1)[:, 0] > 0
    assert 2 * spoiled.sum() < len(spoiled)


@pytest.mark.parametrize(("bucket_size", "num_byzantine"), [(2, 3), (6, 1), (5, 1)])
def test_buckets_that_could_be_spoiled_by_half_are_refused(
    bucket_size: int, num_byzantine: int
) -> None:
    rows = honest_rows(seed=0, num_rows=10, dim=3)
    message = f"bucket_size={bucket_size} of bucketing .* num_byzantine={num_byzantine} and n=10"
    with pytest.raises(TooFewUpdatesError, match=message):
        bucketing(rows, bucket_size=bucket_size, seed=0, num_byzantine=num_byzantine)


@pytest.mark.parametrize("bucket_size", [0, 6])
def test_bucket_size_is_checked(bucket_size: int) -> None:
    rows = honest_rows(seed=0, num_rows=5, dim=3)
    with pytest.raises(AggregationError, match=rf"bucket_size={bucket_size} of bucketing must be"):
        bucketing(rows, bucket_size=bucket_size, seed=0)


def test_negative_numbers_are_refused() -> None:
    rows = honest_rows(seed=0, num_rows=5, dim=3)
    with pytest.raises(AggregationError, match="seed=-1 of bucketing"):
        bucketing(rows, bucket_size=2, seed=-1)
    with pytest.raises(AggregationError, match="num_byzantine=-1 of bucketing"):
        bucketing(rows, bucket_size=2, seed=0, num_byzantine=-1)
