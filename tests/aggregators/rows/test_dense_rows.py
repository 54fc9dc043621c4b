from pathlib import Path

import numpy as np
import pytest

from aggregators.errors import AggregationError
from aggregators.kernels.cell_products import CELL_COLUMNS
from aggregators.rows.dense_rows import DenseRows, as_rows
from aggregators.rows.rows import Rows
from tests.aggregators.matrices import (
    Floats,
    Matrix,
    honest_rows,
    mixed_magnitudes,
    near_identical_rows,
    same_bits,
    scaled_rows,
)
from tests.looped import looped

DIM = 2 * CELL_COLUMNS + 37
BOTH = pytest.mark.parametrize("num_rows", [9, 40])


def everything(rows: Rows) -> list[Matrix | Floats]:
    """Run every operation."""
    n = rows.num_rows
    votes = np.arange(1.0, n + 1.0)
    return [
        rows.read(0, rows.dim),
        rows.combine(votes, votes.sum()),
        rows.median(),
        rows.trimmed_mean((n - 1) // 3),
        rows.mean_around_median(n - n // 3),
        rows.weighted_median(votes, (n - 1) // 3),
        rows.norms(),
        rows.gram().inner,
        rows.gram().squared_distances,
    ]


def assert_same(first: Rows, second: Rows) -> None:
    assert (first.num_rows, first.dim) == (second.num_rows, second.dim)
    for ours, theirs in zip(everything(first), everything(second), strict=True):
        assert same_bits(ours, theirs)


@BOTH
@pytest.mark.parametrize("offset", [4, 8, 12, 20, 60])
def test_memory_maps_may_start_at_any_multiple_of_four_bytes(
    tmp_path: Path, num_rows: int, offset: int
) -> None:
    matrix = honest_rows(1, num_rows, DIM)
    mapped = []
    for row, vector in enumerate(matrix):
        path = tmp_path / f"{row}.bin"
        path.write_bytes(b"\xff" * offset + vector.tobytes())
        mapped.append(np.memmap(path, np.float32, mode="r", offset=offset, shape=(DIM,)))
    assert_same(as_rows(mapped), as_rows(matrix))


def test_arrays_are_not_copied() -> None:
    matrix = honest_rows(2, 5, 100)
    rows = as_rows(matrix)
    before = rows.median()
    matrix[:, 0] = 5.0
    assert rows.median()[0] == 5.0
    assert same_bits(rows.median()[1:], before[1:])


@BOTH
def test_rows_with_gaps_between_values_are_copied(num_rows: int) -> None:
    matrix = honest_rows(3, num_rows, DIM)
    spread = np.repeat(matrix, 2, axis=1)[:, ::2]
    turned = np.asfortranarray(matrix)
    backwards = np.ascontiguousarray(matrix[:, ::-1])[:, ::-1]
    for strided in (spread, turned, backwards):
        assert not strided.flags.c_contiguous
        assert_same(as_rows(strided), as_rows(matrix))
        assert_same(as_rows(list(strided)), as_rows(matrix))


def test_rows_need_not_be_aligned_to_their_type() -> None:
    matrix = honest_rows(4, 6, 50)
    unaligned = [np.frombuffer(b"." + row.tobytes(), np.float32, offset=1) for row in matrix]
    assert_same(as_rows(unaligned), as_rows(matrix))


@BOTH
def test_read_only_rows_are_read(num_rows: int) -> None:
    matrix = honest_rows(5, num_rows, 50)
    frozen = matrix.copy()
    frozen.flags.writeable = False
    assert_same(as_rows(frozen), as_rows(matrix))


def test_rows_are_passed_through() -> None:
    rows = as_rows(honest_rows(6, 3, 4))
    assert as_rows(rows) is rows


def test_nothing_is_written_to_the_rows() -> None:
    matrix = mixed_magnitudes(7, 20, 300) * np.float32(1e-3)
    before = matrix.tobytes()
    rows = as_rows(matrix)
    everything(rows)
    everything(rows.scaled(np.full(20, 0.5)))
    everything(rows.mixed(np.full((3, 20), 0.05)))
    assert matrix.tobytes() == before


@BOTH
def test_taken_rows_are_the_rows_of_the_matrix_taken(num_rows: int) -> None:
    matrix = near_identical_rows(8, num_rows, DIM)
    rows = as_rows(matrix)
    some = [5, 2, 8, 0, 2]
    assert_same(rows.take(some), as_rows(matrix[some]))
    order = np.random.default_rng(8).permutation(num_rows).tolist()
    rows.gram()
    assert_same(rows.take(order), as_rows(matrix[order]))


@BOTH
def test_scaled_rows_are_those_of_the_matrix_scaled(num_rows: int) -> None:
    matrix = near_identical_rows(9, num_rows, DIM)
    factors = np.random.default_rng(9).random(num_rows)
    factors[2], factors[3] = 0.0, 1.0
    assert_same(as_rows(matrix).scaled(factors), as_rows(scaled_rows(matrix, factors)))


def test_factors_multiply_up_before_they_round() -> None:
    matrix = honest_rows(10, 5, 50)
    first, second = np.random.default_rng(10).random((2, 5))
    twice = as_rows(matrix).scaled(first).scaled(second)
    assert_same(twice, as_rows(scaled_rows(matrix, first * second)))


def test_taking_and_scaling_commute() -> None:
    matrix = honest_rows(11, 6, 50)
    factors = np.random.default_rng(11).random(6)
    order = [3, 1, 5]
    assert_same(
        as_rows(matrix).scaled(factors).take(order),
        as_rows(matrix).take(order).scaled(factors[order]),
    )


@BOTH
def test_mixed_rows_are_averages(num_rows: int) -> None:
    matrix = honest_rows(12, num_rows, DIM)
    mixing = np.random.default_rng(12).dirichlet(np.ones(num_rows), 8)
    mixed = as_rows(matrix).mixed(mixing)
    averages = np.einsum("ij,jk->ik", mixing, matrix.astype(np.float64)).astype(np.float32)
    # Rows are averaged anew for each operation; sums need not be rounded to float32 before.
    for ours, theirs in zip(everything(mixed), everything(as_rows(averages)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_mixed_rows_may_be_taken_scaled_and_mixed_again() -> None:
    matrix = honest_rows(13, 9, 60)
    generator = np.random.default_rng(13)
    first, second = generator.dirichlet(np.ones(9), 7), generator.dirichlet(np.ones(3), 5)
    factors = generator.random(5)
    mixed = as_rows(matrix).mixed(first).take([6, 0, 3]).mixed(second).scaled(factors)
    product = factors[:, np.newaxis] * (second @ first[[6, 0, 3]])
    averages = (product @ matrix.astype(np.float64)).astype(np.float32)
    for ours, theirs in zip(everything(mixed), everything(as_rows(averages)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@BOTH
def test_extended_rows_end_in_the_new_one(num_rows: int) -> None:
    matrix = honest_rows(14, num_rows, DIM)
    extended = as_rows(matrix[:-1]).extended(matrix[-1, ::-1][::-1])
    assert_same(extended, as_rows(matrix))


def test_mixed_rows_may_be_extended() -> None:
    matrix = honest_rows(15, 4, 50)
    averages = np.array([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0]])
    longer = as_rows(matrix).mixed(averages).extended(matrix[3])
    wide = np.vstack([averages @ matrix.astype(np.float64), matrix[3]])
    gram = longer.gram()
    np.testing.assert_allclose(gram.inner, wide @ wide.T, rtol=1e-12)
    distances = np.square(wide[:, np.newaxis] - wide).sum(axis=2)
    np.testing.assert_allclose(gram.squared_distances, distances, rtol=1e-9)
    np.testing.assert_allclose(longer.median(), np.median(wide, axis=0), rtol=2.0**-22)


def test_the_gram_matrix_is_computed_once() -> None:
    rows = as_rows(honest_rows(16, 5, 60))
    assert rows.gram() is rows.gram()


def test_columns_are_read_as_they_are_scaled_and_mixed() -> None:
    matrix = honest_rows(17, 5, 60)
    rows = as_rows(matrix)
    np.testing.assert_array_equal(rows.read(10, 30), matrix[:, 10:30])
    factors = np.array([1.0, 0.3, 0.0, 0.5, 1.0])
    np.testing.assert_array_equal(
        rows.scaled(factors).read(10, 30), scaled_rows(matrix, factors)[:, 10:30]
    )
    halves = np.array([[0.5, 0.5, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(
        rows.mixed(halves).read(10, 30), matrix[:2, 10:30].mean(axis=0)[np.newaxis], rtol=1e-7
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_reading_checks_nothing_and_warns_of_nothing(bad: float) -> None:
    matrix = honest_rows(18, 5, 20)
    matrix[1, 3] = bad
    mixing = np.vstack([np.eye(5)[0], np.full(5, 0.2)])
    assert not np.isfinite(as_rows(matrix).read(0, 20)[1, 3])
    assert not np.isfinite(as_rows(matrix).mixed(mixing).read(0, 20)[1, 3])
    assert not np.isfinite(as_rows(matrix).scaled(np.full(5, 0.5)).read(0, 20)[1, 3])


@BOTH
@looped("dim", [5, 16, 2 * CELL_COLUMNS + 3])
@looped("bad", [np.nan, np.inf, -np.inf])
def test_operations_refuse_values_that_are_not_finite_wherever_they_are(
    num_rows: int, dim: int, bad: float
) -> None:
    for row, column in ((0, 0), (num_rows - 1, dim - 1)):
        matrix = honest_rows(19, num_rows, dim)
        matrix[row, column] = bad
        rows = as_rows(matrix)
        for operation in (
            rows.norms,
            rows.gram,
            rows.median,
            lambda rows=rows: rows.combine(np.ones(num_rows)),
            lambda rows=rows: rows.trimmed_mean(1),
            lambda rows=rows: rows.mean_around_median(1),
            lambda rows=rows: rows.weighted_median(np.ones(num_rows), 1),
        ):
            with pytest.raises(AggregationError, match="rows must be finite"):
                operation()


def test_finite_rows_whose_sum_is_beyond_float32_do_not_overflow() -> None:
    rows = as_rows(np.full((6, 20), 3e38, dtype=np.float32))
    for vector in (rows.combine(np.ones(6), 6.0), rows.trimmed_mean(1), rows.mean_around_median(4)):
        np.testing.assert_array_equal(vector, np.full(20, 3e38, dtype=np.float32))
    np.testing.assert_allclose(rows.norms(), np.full(6, 3e38 * np.sqrt(20)), rtol=1e-7)


@pytest.mark.parametrize("trim", [-1, 3, 5])
def test_trims_that_leave_nothing_are_refused(trim: int) -> None:
    rows = as_rows(honest_rows(20, 5, 4))
    message = f"trim={trim} must satisfy 0 <= 2 \\* trim < n, got n=5"
    with pytest.raises(AggregationError, match=message):
        rows.trimmed_mean(trim)
    with pytest.raises(AggregationError, match=message):
        rows.weighted_median(np.ones(5), trim)


@pytest.mark.parametrize("keep", [-1, 0, 6])
def test_values_kept_are_some_and_no_more_than_there_are(keep: int) -> None:
    with pytest.raises(AggregationError, match=f"keep={keep} must be in 1..n=5"):
        as_rows(honest_rows(21, 5, 4)).mean_around_median(keep)


def test_rows_of_wrong_shape_or_type_are_refused() -> None:
    good = np.zeros(3, dtype=np.float32)
    with pytest.raises(AggregationError, match="at least one row"):
        as_rows([])
    with pytest.raises(AggregationError, match="row 1 of shape"):
        as_rows([good, np.zeros(4, dtype=np.float32)])
    with pytest.raises(AggregationError, match="row 0 of shape"):
        as_rows(np.zeros((2, 0), dtype=np.float32))
    with pytest.raises(AggregationError, match="row 0 of shape"):
        as_rows([np.zeros((1, 3), dtype=np.float32)])
    with pytest.raises(AggregationError, match="must be float32"):
        as_rows([good, np.zeros(3)])  # type: ignore[list-item]  # the refusal is under test


def test_cells_count_from_the_columns_of_the_whole() -> None:
    vectors = tuple(np.zeros((2, CELL_COLUMNS + 1), dtype=np.float32))
    assert DenseRows(vectors).cells == (0, 2)
    assert DenseRows(vectors, first_column=3 * CELL_COLUMNS).cells == (3, 5)


@pytest.mark.parametrize("num_threads", [1, 3, 40])
def test_columns_that_fill_no_vector_are_added_to_their_cell(num_threads: int) -> None:
    # Six cells: the last one, which is partial, has a sibling.
    rows = honest_rows(seed=12, num_rows=10, dim=6 * CELL_COLUMNS - 57)
    expected = as_rows(rows, num_threads=2).gram()
    found = as_rows(rows, num_threads=num_threads).gram()
    assert same_bits(found.inner, expected.inner)
