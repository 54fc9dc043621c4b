import numpy as np
import pytest
from hypothesis import given

from aggregators.distances import squared_distances
from aggregators.rows import as_rows
from tests.aggregators.matrices import (
    TIED_FLOAT,
    Matrix,
    brute_force_krum_scores,
    exact_distance,
    honest_rows,
    matrices,
)


def exact_distances(rows: Matrix) -> list[list[float]]:
    return [[exact_distance(a, b) for b in rows] for a in rows]


def near_identical_rows(seed: int, num_rows: int) -> Matrix:
    generator = np.random.default_rng(seed)
    base = 1000.0 * generator.standard_normal(3000)
    return (base + 1e-3 * generator.standard_normal((num_rows, 3000))).astype(np.float32)


@given(matrices(elements=TIED_FLOAT))
def test_small_exact_values_give_exact_distances(rows: Matrix) -> None:
    distances = squared_distances(as_rows(rows))
    assert distances.tolist() == exact_distances(rows)
    assert np.array_equal(distances, distances.T)


def test_near_identical_rows_at_a_large_offset_keep_their_distances() -> None:
    rows = near_identical_rows(seed=1, num_rows=9)
    # Differences are 1e-6 of the values; uncentred float32 would be off by more than 1.
    np.testing.assert_allclose(squared_distances(as_rows(rows)), exact_distances(rows), rtol=1e-12)


def test_uncentred_float32_would_not_pass() -> None:
    rows = near_identical_rows(seed=1, num_rows=9)
    gram = rows @ rows.T
    norms = np.diagonal(gram)
    naive = norms[:, np.newaxis] + norms - 2 * gram
    exact = np.array(exact_distances(rows))
    off_diagonal = ~np.eye(len(rows), dtype=bool)
    assert (np.abs(naive - exact)[off_diagonal] > exact[off_diagonal]).any()


@pytest.mark.parametrize("far", [1e6, 1e30, -1e30])
@pytest.mark.parametrize("num_far", [1, 3])
def test_far_rows_do_not_cancel_the_distances_of_the_others(far: float, num_far: int) -> None:
    rows = near_identical_rows(seed=2, num_rows=9)
    rows[:num_far] = far
    distances = squared_distances(as_rows(rows))
    expected = np.array(exact_distances(rows))
    np.testing.assert_allclose(distances[num_far:, num_far:], expected[num_far:, num_far:], 1e-12)


def test_sums_of_nearest_distances_are_relatively_exact_for_split_clusters() -> None:
    # Far from the majority, the minority's own distances cancel; what Krum sums must not.
    rows = honest_rows(seed=3, num_rows=11, dim=500)
    rows[7:] += np.float32(1e6)
    distances = squared_distances(as_rows(rows))
    np.fill_diagonal(distances, np.inf)
    for num_byzantine in range(5):
        nearest = np.sort(distances, axis=1)[:, : 11 - num_byzantine - 2]
        expected = brute_force_krum_scores(rows, num_byzantine)
        np.testing.assert_allclose(nearest.sum(axis=1), expected, rtol=1e-12)


def test_many_columns_are_accumulated_over_blocks() -> None:
    rows = honest_rows(seed=4, num_rows=3, dim=150_001)
    np.testing.assert_allclose(squared_distances(as_rows(rows)), exact_distances(rows), rtol=1e-12)
