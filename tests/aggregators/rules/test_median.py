import numpy as np
from hypothesis import given

from aggregators.rules.median import median
from tests.aggregators.matrices import ATTACKS, Matrix, attack, honest_rows, matrices
from tests.looped import looped


@given(matrices())
def test_agrees_with_numpy(rows: Matrix) -> None:
    # One exact widening, at most one addition and a halving on both sides: no tolerance needed.
    expected = np.median(rows.astype(np.float64), axis=0).astype(np.float32)
    np.testing.assert_array_equal(median(rows).vector, expected)


def test_even_count_averages_the_middle_values_at_the_edge_of_float32() -> None:
    largest = np.finfo(np.float32).max
    rows = np.array([[largest], [largest]], dtype=np.float32)
    assert median(rows).vector.tolist() == [float(largest)]


@looped("name", ATTACKS)
def test_minority_cannot_leave_the_range_of_the_others(name: str) -> None:
    honest = honest_rows(seed=1, num_rows=6, dim=200)
    vector = median(np.vstack([honest, attack(name, honest, 5)])).vector
    assert (vector >= honest.min(axis=0)).all()
    assert (vector <= honest.max(axis=0)).all()


def test_half_of_the_rows_can() -> None:
    honest = honest_rows(seed=1, num_rows=6, dim=20)
    vector = median(np.vstack([honest, attack("plus_1e30", honest, 6)])).vector
    assert (vector > 1e29).all()


def test_every_row_has_an_equal_vote() -> None:
    result = median(np.zeros((4, 1), dtype=np.float32))
    assert result.weights.tolist() == [0.25] * 4
    assert result.selected.all()
