import math
import tracemalloc
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregators.errors import AggregationError
from aggregators.rows import sparse_rows
from aggregators.rows.dense_rows import as_rows
from aggregators.rows.rows import Rows, canonical_order
from aggregators.rows.sparse_rows import SparseRows, SparseVector
from aggregators.rules.krum import krum
from aggregators.rules.mean import mean
from aggregators.rules.median import median
from aggregators.rules.multi_krum import multi_krum
from tests.aggregators.matrices import TIED_FLOAT, Matrix, exact_distance, matrices, same_bits
from tests.looped import looped

Floats = NDArray[np.float64]


def sparse(matrix: Matrix) -> SparseRows:
    return SparseRows.of([SparseVector.of_dense(row) for row in matrix])


def densify(rows: SparseRows) -> Matrix:
    return rows.read(0, rows.dim)


def top_k(seed: int, num_rows: int, dim: int, keep: int) -> Matrix:
    """Rows of `keep` normal values each, most of them where few others have any, some shared."""
    generator = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, dim + 1)
    matrix = np.zeros((num_rows, dim), dtype=np.float32)
    for row in matrix:
        columns = generator.choice(dim, keep, replace=False, p=popularity / popularity.sum())
        row[columns] = generator.standard_normal(keep)
    return matrix


def exact_inner(first: Matrix, second: Matrix) -> float:
    return math.fsum((first.astype(np.float64) * second.astype(np.float64)).tolist())


def exact_distances(matrix: Matrix) -> Floats:
    return np.array([[exact_distance(a, b) for b in matrix] for a in matrix])


def exact_sum(matrix: Matrix, weights: Floats, total: float) -> Matrix:
    terms = matrix.astype(np.float64) * weights[:, np.newaxis]
    return np.array([math.fsum(column) / total for column in terms.T.tolist()]).astype(np.float32)


@pytest.fixture(params=["one_chunk", "many_chunks", "wide_chunks"])
def chunking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with the columns cut as few, as many and as sparse columns are."""
    if request.param == "many_chunks":
        monkeypatch.setattr(sparse_rows, "_CHUNK_ENTRIES", 50)
        monkeypatch.setattr(sparse_rows, "_MIN_CHUNK_COLUMNS", 16)
        monkeypatch.setattr(sparse_rows, "_BLOCK_VALUES", 256)
    elif request.param == "wide_chunks":
        monkeypatch.setattr(sparse_rows, "_MAX_CHUNK_COLUMNS", 1)


def test_sparse_rows_are_rows() -> None:
    assert isinstance(sparse(top_k(0, 3, 20, 4)), Rows)


@given(matrices(elements=TIED_FLOAT), st.data())
def test_reading_returns_the_dense_values(matrix: Matrix, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, matrix.shape[1]))
    stop = data.draw(st.integers(start, matrix.shape[1]))
    rows = sparse(matrix)
    assert (rows.num_rows, rows.dim) == matrix.shape
    np.testing.assert_array_equal(rows.read(start, stop), matrix[:, start:stop])


@given(matrices(elements=TIED_FLOAT))
def test_gram_is_exact_where_no_product_rounds(matrix: Matrix) -> None:
    gram = sparse(matrix).gram()
    inner = [[exact_inner(a, b) for b in matrix] for a in matrix]
    assert gram.inner.tolist() == inner
    assert gram.squared_distances.tolist() == exact_distances(matrix).tolist()


@given(matrices())
def test_gram_of_any_values_agrees_with_exact_sums(matrix: Matrix) -> None:
    gram = sparse(matrix).gram()
    sizes = np.sqrt([exact_inner(row, row) for row in matrix])
    inner = np.array([[exact_inner(a, b) for b in matrix] for a in matrix])
    assert (np.abs(gram.inner - inner) <= 1e-14 * np.multiply.outer(sizes, sizes)).all()
    np.testing.assert_allclose(gram.squared_distances, exact_distances(matrix), rtol=1e-12)


# 6 rows: every column counts as crowded. 40 rows: both kinds.
@pytest.mark.usefixtures("chunking")
@pytest.mark.parametrize("num_rows", [1, 2, 6, 40])
def test_gram_of_top_k_updates_agrees_with_exact_sums(num_rows: int) -> None:
    matrix = top_k(1, num_rows, dim=300, keep=30)
    gram = sparse(matrix).gram()
    wide = matrix.astype(np.float64)
    np.testing.assert_allclose(gram.inner, wide @ wide.T, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gram.squared_distances, exact_distances(matrix), rtol=1e-12)
    np.testing.assert_array_equal(gram.inner, gram.inner.T)
    np.testing.assert_array_equal(gram.squared_distances, gram.squared_distances.T)
    dense = as_rows(matrix).gram()
    np.testing.assert_allclose(gram.squared_distances, dense.squared_distances, rtol=1e-5)


@pytest.mark.usefixtures("chunking")
@pytest.mark.parametrize("num_copies", [3, 12, 30])
@pytest.mark.parametrize("noise", [1e-1, 1e-3, 1e-6])
def test_distances_of_near_copies_keep_their_digits(num_copies: int, noise: float) -> None:
    generator = np.random.default_rng(2)
    matrix = top_k(2, num_rows=40, dim=300, keep=30)
    matrix[:num_copies] = 1000.0 * matrix[0]
    jitter = noise * generator.standard_normal((num_copies, 300)) * (matrix[0] != 0.0)
    matrix[:num_copies] += jitter.astype(np.float32)
    matrix[1, np.flatnonzero(matrix[1] == 0.0)[:2]] = noise
    distances = sparse(matrix).gram().squared_distances
    np.testing.assert_allclose(distances, exact_distances(matrix), rtol=1e-12)


def test_distances_within_clusters_of_clusters_keep_their_digits() -> None:
    # 60 rows, so that columns held by up to 7 of them are not treated as dense.
    matrix = top_k(3, num_rows=60, dim=400, keep=10)
    matrix[:7] = 0.0
    for row in range(7):
        matrix[row, :8] = 1e6
        matrix[row, 8:16] = [10.0 ** (4 - 3 * level) * min(row, level) for level in range(8)]
    distances = sparse(matrix).gram().squared_distances
    np.testing.assert_allclose(distances, exact_distances(matrix), rtol=1e-12)


def test_copies_have_a_distance_of_zero() -> None:
    matrix = np.repeat(top_k(4, num_rows=3, dim=100, keep=20), 9, axis=0)
    distances = sparse(matrix).gram().squared_distances
    same = np.arange(27)[:, np.newaxis] // 9 == np.arange(27) // 9
    assert not distances[same].any()
    assert distances[~same].all()


@pytest.mark.parametrize(("num_rows", "dim"), [(5, 300), (40, 3000)])
def test_order_of_rows_changes_no_bit(num_rows: int, dim: int) -> None:
    generator = np.random.default_rng(5)
    # About four rows hold a column, so that most pairs meet in many of them.
    matrix = generator.standard_normal((num_rows, dim)).astype(np.float32)
    matrix[generator.uniform(size=matrix.shape) > 0.1] = 0.0
    # Rows that agree in number of entries and norm, copies, and near copies.
    matrix[0, -1] = 0.0
    matrix[1] = np.roll(matrix[0], 1)
    matrix[2] = matrix[3]
    matrix[3:5] = matrix[3] * (1.0 + 1e-3 * generator.standard_normal((2, dim)))
    weights = generator.uniform(0.1, 10.0, num_rows)
    rows = sparse(matrix)
    gram, norms, combined = rows.gram(), rows.norms(), rows.combine(weights, 3.0)
    for _ in range(5):
        order = generator.permutation(num_rows).tolist()
        shuffled = sparse(matrix[order])
        expected = gram.take(order)
        assert same_bits(shuffled.gram().inner, expected.inner)
        assert same_bits(shuffled.gram().squared_distances, expected.squared_distances)
        assert same_bits(shuffled.norms(), norms[order])
        assert shuffled.combine(weights[order], 3.0).tobytes() == combined.tobytes()


@given(matrices(), st.data())
def test_combine_is_correct_to_one_rounding(matrix: Matrix, data: st.DataObject) -> None:
    counts = st.lists(st.integers(1, 1000), min_size=len(matrix), max_size=len(matrix))
    weights = np.array(data.draw(counts), dtype=np.float64)
    matrix = np.clip(matrix, -1e8, 1e8)
    matrix[np.abs(matrix) < 1e-8] = 0.0
    combined = sparse(matrix).combine(weights, weights.sum())
    np.testing.assert_array_equal(combined, exact_sum(matrix, weights, float(weights.sum())))
    dense = as_rows(matrix).combine(weights, weights.sum())
    np.testing.assert_array_max_ulp(combined, dense, maxulp=1)


@pytest.mark.usefixtures("chunking")
def test_combine_of_top_k_updates_agrees_with_exact_sums() -> None:
    matrix = top_k(8, num_rows=30, dim=500, keep=60)
    # Values that cancel all but the digits float32 could not keep beside them.
    matrix[3, 7], matrix[4, 7], matrix[5, 7] = 1e8, 1e-7, -1e8
    matrix[:3, 7] = matrix[6:, 7] = 0.0
    weights = np.ones(30)
    weights[9] = 0.0
    combined = sparse(matrix).combine(weights, 29.0)
    np.testing.assert_array_equal(combined, exact_sum(matrix, weights, 29.0))
    assert combined[7] == np.float32(float(np.float32(1e-7)) / 29.0)


def test_norms_neither_overflow_nor_vanish() -> None:
    matrix = np.array([[3e30, 4e30, 0.0], [0.0, 3e-30, 4e-30], [0.0, 0.0, 0.0]], dtype=np.float32)
    rows = sparse(matrix)
    np.testing.assert_allclose(rows.norms(), [5e30, 5e-30, 0.0], rtol=1e-7)
    np.testing.assert_array_equal(rows.norms(), rows.gram().norms)


@given(matrices(min_rows=2), st.data())
def test_taken_scaled_and_extended_rows_agree_with_dense_ones(
    matrix: Matrix, data: st.DataObject
) -> None:
    picked = data.draw(st.lists(st.integers(0, len(matrix) - 1), min_size=1, max_size=6))
    factors = np.array(
        data.draw(st.lists(st.floats(0.0, 1.0), min_size=len(matrix), max_size=len(matrix)))
    )
    expected = (matrix.astype(np.float64) * factors[:, np.newaxis]).astype(np.float32)[picked]
    rows = sparse(matrix).scaled(factors).take(picked)
    np.testing.assert_array_equal(densify(rows), expected)
    np.testing.assert_array_equal(densify(rows.extended(matrix[0])), [*expected, matrix[0]])
    np.testing.assert_allclose(rows.gram().squared_distances, exact_distances(expected), rtol=1e-12)
    np.testing.assert_array_equal(rows.norms(), sparse(expected).norms())


def test_scaling_twice_rounds_once() -> None:
    matrix = top_k(9, num_rows=4, dim=100, keep=50)
    third = np.full(4, 1.0 / 3.0)
    rows = sparse(matrix).scaled(third).scaled(np.full(4, 0.7))
    product = (matrix.astype(np.float64) * (third[0] * 0.7)).astype(np.float32)
    np.testing.assert_array_equal(densify(rows), product)


@pytest.mark.parametrize("num_rows", [5, 30])
def test_mixed_rows_agree_with_averages_of_dense_rows(num_rows: int) -> None:
    generator = np.random.default_rng(10)
    matrix = top_k(10, num_rows, dim=200, keep=20)
    mixing = generator.uniform(0.0, 1.0, (4, num_rows))
    mixing /= mixing.sum(axis=1, keepdims=True)
    averages = mixing @ matrix.astype(np.float64)
    rows = sparse(matrix).mixed(mixing)
    assert (rows.num_rows, rows.dim) == (4, 200)
    # Read values are rounded to float32.
    np.testing.assert_allclose(densify(rows), averages, rtol=1e-6, atol=1e-9)
    gram = rows.gram()
    np.testing.assert_allclose(gram.inner, averages @ averages.T, rtol=1e-9)
    np.testing.assert_allclose(rows.norms(), np.linalg.norm(averages, axis=1), rtol=1e-9)
    for i in range(4):
        square = np.square(averages - averages[i]).sum(axis=1)
        np.testing.assert_allclose(gram.squared_distances[i], square, rtol=1e-9, atol=1e-12)
    weights = np.array([1.0, 0.0, 2.0, 4.0])
    combined = rows.combine(weights, 7.0)
    np.testing.assert_allclose(combined, weights @ averages / 7.0, rtol=1e-6, atol=1e-9)
    again = rows.take([2, 0]).mixed(np.array([[0.5, 0.5]]))
    expected = (averages[2:3] + averages[0:1]) / 2
    np.testing.assert_allclose(densify(again), expected, rtol=1e-6, atol=1e-9)
    # A row that is chosen is the row that is read.
    assert rows.combine(np.array([0.0, 1.0, 0.0, 0.0])).tobytes() == densify(rows)[1].tobytes()


def test_mixed_rows_cannot_be_scaled_or_extended() -> None:
    rows = sparse(top_k(11, 4, 50, 5)).mixed(np.full((2, 4), 0.25))
    with pytest.raises(AggregationError, match="cannot be scaled"):
        rows.scaled(np.ones(2))
    with pytest.raises(AggregationError, match="cannot be extended"):
        rows.extended(np.zeros(50, dtype=np.float32))


@given(matrices(elements=TIED_FLOAT), st.randoms(use_true_random=False))
def test_canonical_order_is_that_of_dense_rows(matrix: Matrix, random: Random) -> None:
    # Sparse rows do not store the sign of a zero.
    matrix = matrix + np.float32(0.0)
    matrix = matrix[random.sample(range(len(matrix)), len(matrix))]
    assert canonical_order(sparse(matrix)) == canonical_order(as_rows(matrix))


@pytest.mark.parametrize("seed", range(5))
def test_rules_on_inner_products_agree_with_dense_rows(seed: int) -> None:
    matrix = top_k(seed, num_rows=20, dim=400, keep=60)
    matrix[:4] *= 1000.0
    rows = sparse(matrix)
    for sparse_result, dense_result in (
        (krum(rows, num_byzantine=4), krum(matrix, num_byzantine=4)),
        (multi_krum(rows, num_byzantine=4), multi_krum(matrix, num_byzantine=4)),
        (mean(rows), mean(matrix)),
    ):
        assert sparse_result.selected.tolist() == dense_result.selected.tolist()
        np.testing.assert_array_equal(sparse_result.weights, dense_result.weights)
        np.testing.assert_array_max_ulp(sparse_result.vector, dense_result.vector, maxulp=1)
    assert not multi_krum(rows, num_byzantine=4).selected[:4].any()


RANKING: dict[str, Callable[[Rows], NDArray[np.float32]]] = {
    "median": lambda rows: rows.median(),
    "trimmed_mean": lambda rows: rows.trimmed_mean(1),
    "mean_around_median": lambda rows: rows.mean_around_median(3),
    "weighted_median": lambda rows: rows.weighted_median(np.ones(rows.num_rows), 1),
}


@pytest.mark.parametrize("rule", RANKING)
def test_rules_that_rank_values_are_refused_where_most_are_not_sent(rule: str) -> None:
    rows = sparse(top_k(12, num_rows=5, dim=100, keep=49))
    message = f"{rule} needs dense rows: with density=0.49 below 0.5 the zeros"
    with pytest.raises(AggregationError, match=message):
        RANKING[rule](rows)
    with pytest.raises(AggregationError, match="median needs dense rows"):
        median(rows)


@pytest.mark.parametrize("rule", RANKING)
@looped("keep", [50, 100])
def test_rules_that_rank_values_run_where_half_of_them_are_sent(rule: str, keep: int) -> None:
    matrix = top_k(13, num_rows=6, dim=100, keep=keep)
    rows = sparse(matrix).scaled(np.linspace(0.5, 1.0, 6))
    dense = as_rows(densify(rows))
    np.testing.assert_array_equal(RANKING[rule](rows), RANKING[rule](dense))


def test_zeros_of_devices_that_sent_nothing_would_outvote_the_senders() -> None:
    # Every device wants every coordinate to grow, and sends the tenth it may.
    matrix = np.zeros((10, 100), dtype=np.float32)
    for row in range(10):
        matrix[row, row::10] = 1.0
    assert not median(matrix).vector.any()
    with pytest.raises(AggregationError, match="outvote"):
        median(sparse(matrix))
    assert mean(sparse(matrix)).vector.all()


def test_mixed_dense_enough_rows_can_be_ranked() -> None:
    matrix = top_k(14, num_rows=4, dim=50, keep=40)
    mixing = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.5, 0.5]])
    expected = np.median(mixing @ matrix.astype(np.float64), axis=0)
    got = sparse(matrix).mixed(mixing).median()
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)


def test_memory_follows_the_entries() -> None:
    # 200 rows of 2**40 columns: one dense row would not fit.
    generator = np.random.default_rng(15)
    dim = 1 << 40
    vectors = [
        SparseVector(
            indices=np.unique(generator.integers(0, dim, 50)),
            values=generator.standard_normal(50).astype(np.float32),
            dim=dim,
        )
        for _ in range(200)
    ]
    rows = SparseRows.of(vectors)
    tracemalloc.start()
    gram = rows.gram()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000
    np.testing.assert_allclose(gram.norms, rows.norms(), rtol=1e-12)


def test_rows_without_entries_are_zero() -> None:
    rows = sparse(np.zeros((3, 70), dtype=np.float32))
    assert rows.density == 0.0
    assert not rows.gram().inner.any()
    assert not rows.gram().squared_distances.any()
    assert not rows.combine(np.ones(3), 3.0).any()
    assert not rows.norms().any()
    assert not krum(rows, num_byzantine=0).vector.any()


def test_stored_zeros_are_zeros() -> None:
    indices = np.array([1, 4, 7], dtype=np.int32)
    zeros = SparseVector(indices=indices, values=np.array([0, -0.0, 2], dtype=np.float32), dim=9)
    plain = SparseVector(indices=indices[2:], values=np.array([2], dtype=np.float32), dim=9)
    gram = SparseRows.of([zeros, plain, zeros]).gram()
    assert not gram.squared_distances.any()
    assert gram.inner.tolist() == [[4.0] * 3] * 3


@looped(
    "indices, values, dim, message",
    [
        ([0, 1], [1, 2], 0, "dim=0 of a sparse vector"),
        ([[0, 1]], [1, 2], 5, "indices of int64"),
        ([0.0, 1.0], [1, 2], 5, "indices of float64"),
        ([0, 1], [1], 5, "values of float32"),
        ([2, 1], [1, 2], 5, "strictly increasing, got 2 before 1"),
        ([0, 3, 3], [1, 2, 3], 5, "strictly increasing, got 3 before 3"),
        ([-1, 3], [1, 2], 5, r"indices -1\.\.3 must be in 0\.\.4"),
        ([0, 5], [1, 2], 5, r"indices 0\.\.5 must be in 0\.\.4"),
        ([0, 1], [1, np.nan], 5, "must be finite"),
        ([0, 1], [1, np.inf], 5, "must be finite"),
    ],
)
def test_entries_that_are_no_row_are_refused(
    indices: list[int], values: list[float], dim: int, message: str
) -> None:
    with pytest.raises(AggregationError, match=message):
        SparseVector(indices=np.array(indices), values=np.array(values, dtype=np.float32), dim=dim)


def test_values_of_another_type_are_refused() -> None:
    with pytest.raises(AggregationError, match="values of float64"):
        SparseVector(indices=np.array([0]), values=np.ones(1), dim=3)  # type: ignore[arg-type]
    with pytest.raises(AggregationError, match="vector of float64"):
        SparseVector.of_dense(np.ones(3))  # type: ignore[arg-type]  # the refusal is under test


def test_rows_of_different_dimensions_are_refused() -> None:
    short, long = (SparseVector.of_dense(np.ones(dim, dtype=np.float32)) for dim in (3, 4))
    with pytest.raises(AggregationError, match="row 1 of dim=4 must have dim=3"):
        SparseRows.of([short, long])
    with pytest.raises(AggregationError, match="vector of dim=4 must have dim=3"):
        SparseRows.of([short]).extended(np.ones(4, dtype=np.float32))
    with pytest.raises(AggregationError, match="got n=0"):
        SparseRows.of([])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_dense_rows_that_are_not_finite_cannot_be_appended(bad: float) -> None:
    rows = sparse(top_k(16, 3, 10, 2))
    with pytest.raises(AggregationError, match="must be finite"):
        rows.extended(np.array([0.0] * 9 + [bad], dtype=np.float32))


def test_values_that_scaling_takes_out_of_range_are_refused() -> None:
    rows = sparse(np.full((2, 3), 1e30, dtype=np.float32)).scaled(np.array([1.0, 1e10]))
    for operation in (rows.norms, rows.gram, lambda: rows.combine(np.ones(2)), rows.median):
        with pytest.raises(AggregationError, match=r"rows must be finite: .* in row 1"):
            operation()
