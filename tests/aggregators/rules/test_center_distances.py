import numpy as np
import pytest
from numpy.typing import NDArray

from aggregators.rows.dense_rows import as_rows
from aggregators.rules.center_distances import distances_to_center
from tests.aggregators.matrices import Matrix, honest_rows
from tests.looped import looped


def by_difference(rows: Matrix, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    wide = rows.astype(np.longdouble)
    center = (weights[:, np.newaxis] * wide).sum(axis=0)
    found: NDArray[np.float64] = np.sqrt(np.square(wide - center).sum(axis=1)).astype(np.float64)
    return found


@looped("seed", range(10))
def test_agrees_with_differences(seed: int) -> None:
    rows = honest_rows(seed, num_rows=8, dim=30)
    weights = np.random.default_rng(seed).dirichlet(np.ones(8))
    found = distances_to_center(as_rows(rows).gram(), weights)
    np.testing.assert_allclose(found, by_difference(rows, weights), rtol=1e-12)


def test_rows_close_together_keep_their_digits() -> None:
    rows = (1000.0 + honest_rows(seed=1, num_rows=6, dim=50)).astype(np.float32)
    weights = np.full(6, 1 / 6)
    found = distances_to_center(as_rows(rows).gram(), weights)
    np.testing.assert_allclose(found, by_difference(rows, weights), rtol=1e-12)


@pytest.mark.parametrize("length", [1e6, 1e15, 1e30])
def test_far_rows_of_small_weight_cost_no_digits(length: float) -> None:
    rows = honest_rows(seed=2, num_rows=7, dim=50)
    rows[0] = length
    weights = np.append(1e-1 / length, np.full(6, (1.0 - 1e-1 / length) / 6))
    found = distances_to_center(as_rows(rows).gram(), weights)
    np.testing.assert_allclose(found, by_difference(rows, weights), rtol=1e-6)


def test_a_row_that_is_the_center_is_at_distance_zero() -> None:
    rows = honest_rows(seed=3, num_rows=4, dim=10)
    found = distances_to_center(as_rows(rows).gram(), np.array([0.0, 0.0, 1.0, 0.0]))
    assert found[2] == 0.0
