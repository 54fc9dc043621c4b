from collections.abc import Callable

import numpy as np
import pytest

from aggregators.kernels.simd import LANES
from aggregators.kernels.sorting_network import merges_for
from aggregators.rows.dense_rows import DenseRows, as_rows
from tests.aggregators.matrices import (
    Floats,
    Matrix,
    brute_force_mean_around_median,
    brute_force_median,
    brute_force_trimmed_mean,
    brute_force_weighted_median,
    cancelling_rows,
    mixed_magnitudes,
    same_bits,
    tied_rows,
    ulps,
)
from tests.looped import looped

COUNTS = (*range(1, 41), 100, 257)
WIDTHS = (1, 15, 16, 17, 255, 2047, 2048, 2049, 5000)


def every_kind(num_rows: int, dim: int) -> list[Matrix]:
    return [
        mixed_magnitudes(num_rows, num_rows, dim),
        tied_rows(num_rows, num_rows, dim),
        cancelling_rows(num_rows, num_rows, dim),
    ]


def trims_of(num_rows: int) -> list[int]:
    return sorted({0, (num_rows - 1) // 4, (num_rows - 1) // 2})


def keeps_of(num_rows: int) -> list[int]:
    return sorted({1, num_rows // 2 + 1, num_rows - num_rows // 4, num_rows})


def few_votes(num_rows: int, seed: int = 0) -> Floats:
    votes = np.random.default_rng(seed).integers(0, 4, num_rows).astype(np.float64)
    votes[0] += 1.0
    return votes


def assert_median(rows: Matrix) -> None:
    np.testing.assert_array_equal(as_rows(rows).median(), brute_force_median(rows))


def assert_trimmed_mean(rows: Matrix, trim: int) -> None:
    found = as_rows(rows).trimmed_mean(trim)
    # The exact sum is rounded to float64 before it is divided and rounded to float32.
    assert ulps(found, brute_force_trimmed_mean(rows, trim)) <= 1
    kept = np.sort(rows, axis=0)[trim : len(rows) - trim]
    assert (found >= kept[0]).all()
    assert (found <= kept[-1]).all()


def assert_mean_around_median(rows: Matrix, keep: int) -> None:
    found = as_rows(rows).mean_around_median(keep)
    expected = brute_force_mean_around_median(rows, keep)
    # Sums are not compensated: an error of a few roundings of the largest kept value.
    largest = np.abs(rows.astype(np.float64)).max(axis=0)
    error = np.abs(found.astype(np.float64) - expected)
    allowed = 2.0**-23 * np.abs(expected) + 2.0**-50 * len(rows) * largest + 2.0**-149
    assert (error <= allowed).all()


@looped("num_rows", COUNTS)
def test_median_agrees_with_numpy(num_rows: int) -> None:
    for rows in every_kind(num_rows, 33):
        assert_median(rows)


@looped("num_rows", COUNTS)
def test_trimmed_mean_agrees_with_brute_force(num_rows: int) -> None:
    for rows in every_kind(num_rows, 17):
        for trim in trims_of(num_rows):
            assert_trimmed_mean(rows, trim)


@looped("num_rows", COUNTS)
def test_mean_around_median_agrees_with_brute_force(num_rows: int) -> None:
    for rows in every_kind(num_rows, 17):
        for keep in keeps_of(num_rows):
            assert_mean_around_median(rows, keep)


@looped("num_rows", [1, 2, 3, 4, 5, 8, 9, 16, 33, 100])
def test_weighted_median_agrees_with_brute_force(num_rows: int) -> None:
    for rows in every_kind(num_rows, 17):
        for votes in (np.ones(num_rows), few_votes(num_rows)):
            for trim in trims_of(num_rows):
                # All of the weight may have been trimmed; what is left is then of no weight.
                if votes[np.argsort(rows, axis=0, kind="stable")][trim : num_rows - trim].all():
                    found = as_rows(rows).weighted_median(votes, trim)
                    assert ulps(found, brute_force_weighted_median(rows, votes, trim)) == 0


def test_weighted_median_of_equal_weights_is_the_median() -> None:
    for num_rows in (1, 2, 7, 12):
        rows = mixed_magnitudes(1, num_rows, 40)
        votes = np.full(num_rows, 3.0)
        assert same_bits(as_rows(rows).weighted_median(votes, 0), as_rows(rows).median())


@pytest.mark.parametrize("num_rows", [100, 257, 1000])
def test_many_rows_agree_with_numpy(num_rows: int) -> None:
    rows = mixed_magnitudes(2, num_rows, 19)
    assert_median(rows)
    assert_trimmed_mean(rows, num_rows // 3)
    assert_mean_around_median(rows, num_rows - num_rows // 3)


@looped("dim", WIDTHS)
@looped("num_rows", [7, 10])
def test_every_width_agrees_with_numpy(num_rows: int, dim: int) -> None:
    rows = tied_rows(3, num_rows, dim)
    rows[::3] = mixed_magnitudes(3, num_rows, dim)[::3]
    assert_median(rows)
    assert_trimmed_mean(rows, 3)
    assert_mean_around_median(rows, 6)


def test_zeros_of_both_signs_come_out_positive() -> None:
    zeros = np.array([[-0.0, 0.0, -0.0], [-0.0, -0.0, 0.0]], dtype=np.float32)
    rows = as_rows(zeros)
    results = [rows.median(), rows.trimmed_mean(0), rows.mean_around_median(1)]
    results.append(rows.weighted_median(np.ones(2), 0))
    assert not any(np.signbit(result).any() for result in results)


def test_of_two_values_equally_near_the_median_the_lesser_is_kept() -> None:
    rows = as_rows(np.array([[-1.0], [0.0], [1.0]], dtype=np.float32))
    assert rows.mean_around_median(2).tolist() == [-0.5]


def test_mixed_rows_are_mixed_in_float64_and_rounded_once() -> None:
    rows = mixed_magnitudes(4, 9, 37) * np.float32(1e-3)
    matrix = np.random.default_rng(4).dirichlet(np.ones(9), 7)
    mixed = as_rows(rows).mixed(matrix)
    written = mixed.read(0, 37)
    expected = np.einsum("ij,jk->ik", matrix, rows.astype(np.float64))
    np.testing.assert_allclose(written, expected, rtol=1e-6, atol=1e-6)
    # What is read and what is sorted may differ by a fused multiplication.
    assert ulps(mixed.median(), np.median(written, axis=0)) <= 1
    trimmed = brute_force_trimmed_mean(written, 2)
    np.testing.assert_allclose(mixed.trimmed_mean(2), trimmed, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_rows", [1, 5, 8, 13, 24])
def test_scaled_rows_are_rounded_before_they_are_sorted(num_rows: int) -> None:
    rows = mixed_magnitudes(5, num_rows, 50)
    factors = np.random.default_rng(5).random(num_rows)
    factors[0] = 1.0
    written = (rows.astype(np.float64) * factors[:, np.newaxis]).astype(np.float32)
    scaled = DenseRows(tuple(rows), scales=factors)
    assert same_bits(scaled.median(), as_rows(written).median())
    assert same_bits(scaled.trimmed_mean(0), as_rows(written).trimmed_mean(0))
    assert same_bits(scaled.mean_around_median(1), as_rows(written).mean_around_median(1))
    votes = few_votes(num_rows)
    assert same_bits(scaled.weighted_median(votes, 0), as_rows(written).weighted_median(votes, 0))


@looped("num_blocks", range(1, 11))
def test_planned_merges_put_the_wanted_blocks_in_place(num_blocks: int) -> None:
    # By the 0-1 principle it is enough to sort blocks of zeros and ones.
    for first in range(num_blocks):
        for last in range(first, num_blocks):
            merges = merges_for(num_blocks, first, last).tolist()
            for bits in range(1 << num_blocks):
                blocks = [bits >> place & 1 for place in range(num_blocks)]
                wanted = sorted(blocks)[first : last + 1]
                for low, high, mode in merges:
                    lesser, greater = sorted((blocks[low], blocks[high]))
                    blocks[low] = lesser if mode != 2 else -9
                    blocks[high] = greater if mode != 1 else -9
                assert blocks[first : last + 1] == wanted
            if num_blocks > 6:
                break


def test_merges_that_cannot_matter_are_left_out() -> None:
    assert len(merges_for(125, 62, 62)) < len(merges_for(125, 0, 124))


@looped("bad", [np.nan, -np.nan, np.inf, -np.inf])
@looped("column", [0, 15, 16, 39])
def test_a_single_value_that_is_not_finite_is_found(bad: float, column: int) -> None:
    rows = np.ones((11, LANES * 2 + 8), dtype=np.float32)
    rows[4, column] = bad
    matrix = as_rows(rows)
    operations: list[Callable[[], Matrix]] = [
        matrix.median,
        lambda: matrix.trimmed_mean(5),
        lambda: matrix.mean_around_median(1),
        lambda: matrix.weighted_median(np.ones(11), 5),
        lambda: matrix.mixed(np.full((3, 11), 1 / 11)).median(),
    ]
    for operation in operations:
        with pytest.raises(ValueError, match="rows must be finite"):
            operation()
