import numpy as np
import pytest

from aggregators.rows.dense_rows import as_rows
from aggregators.rules.principal_component import principal_component
from tests.aggregators.matrices import honest_rows
from tests.looped import looped


@looped("seed", range(8))
@looped("num_rows, dim", [(6, 20), (16, 6), (2, 3), (5, 1)])
def test_agrees_with_the_covariance_matrix(seed: int, num_rows: int, dim: int) -> None:
    rows = honest_rows(seed, num_rows, dim)
    weights = np.random.default_rng(seed).uniform(0.1, 1.0, num_rows)
    weights[num_rows - 1] = 0.0 if num_rows > 2 else 1.0
    wide = rows.astype(np.float64)
    shares = weights / weights.sum()
    centered = wide - shares @ wide
    values, vectors = np.linalg.eigh(centered.T @ (shares[:, np.newaxis] * centered))
    variance, projections = principal_component(as_rows(rows).gram(), weights)
    assert variance == pytest.approx(values[-1], rel=1e-9)
    expected = np.where(weights > 0.0, np.square(centered @ vectors[:, -1]), 0.0)
    np.testing.assert_allclose(projections, expected, rtol=1e-6, atol=1e-9 * values[-1])


def test_equal_rows_do_not_vary() -> None:
    rows = np.full((4, 3), 7.0, dtype=np.float32)
    rows[3] = 1e30
    variance, projections = principal_component(
        as_rows(rows).gram(), np.array([1.0, 1.0, 1.0, 0.0])
    )
    assert variance == 0.0
    assert projections.tolist() == [0.0] * 4


@pytest.mark.parametrize("length", [1e-30, 1e30])
def test_neither_tiny_nor_huge_rows_are_lost(length: float) -> None:
    rows = (np.array([[1.0], [2.0], [6.0]]) * length).astype(np.float32)
    variance, projections = principal_component(as_rows(rows).gram(), np.ones(3))
    np.testing.assert_allclose(projections / length**2, [4.0, 1.0, 9.0], rtol=1e-6)
    assert variance / length**2 == pytest.approx(14 / 3, rel=1e-6)
