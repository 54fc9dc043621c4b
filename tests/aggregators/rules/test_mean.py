import numpy as np
import pytest

from aggregators.errors import AggregationError
from aggregators.rules.mean import mean
from tests.aggregators.matrices import honest_rows


def test_weights_are_shares_of_the_total() -> None:
    rows = np.array([[0.0, 4.0], [8.0, 0.0]], dtype=np.float32)
    result = mean(rows, weights=np.array([1.0, 3.0]))
    assert result.vector.tolist() == [6.0, 1.0]
    assert result.weights.tolist() == [0.25, 0.75]
    assert result.selected.tolist() == [True, True]
    assert result.scores is None


def test_agrees_with_numpy() -> None:
    rows = honest_rows(seed=1, num_rows=30, dim=50)
    weights = np.random.default_rng(1).integers(1, 1000, 30).astype(np.float64)
    expected = np.average(rows.astype(np.float64), axis=0, weights=weights)
    np.testing.assert_allclose(mean(rows, weights=weights).vector, expected, rtol=2.0**-23)


def test_rows_of_weight_zero_are_left_out() -> None:
    rows = np.array([[1.0], [1e30], [3.0]], dtype=np.float32)
    result = mean(rows, weights=np.array([1.0, 0.0, 1.0]))
    assert result.vector.tolist() == [2.0]
    assert result.selected.tolist() == [True, False, True]


def test_one_row_moves_the_result_anywhere() -> None:
    rows = honest_rows(seed=2, num_rows=10, dim=5)
    rows[0] = 1e30
    assert (mean(rows, weights=np.ones(10)).vector > 1e28).all()


def test_weights_must_match_the_rows() -> None:
    with pytest.raises(AggregationError, match="one number per row"):
        mean(np.ones((2, 1), dtype=np.float32), weights=np.ones(3))
