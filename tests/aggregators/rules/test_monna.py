from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.rows.dense_rows import as_rows
from aggregators.rules.mean import mean
from aggregators.rules.monna import monna, monna_weights
from tests.aggregators.matrices import (
    ANY_FLOAT,
    ATTACKS,
    TIED_FLOAT,
    Matrix,
    attack,
    exact_distance,
    honest_rows,
    matrices,
    same_bits,
)
from tests.looped import looped
from tests.peers import byzfl

# The vector is rounded once to float32.
ROUNDING = 2.0**-23


@given(matrices(min_rows=2, elements=ANY_FLOAT | TIED_FLOAT), st.data())
def test_no_row_left_out_is_nearer(rows: Matrix, data: st.DataObject) -> None:
    pivot, rows = rows[0], rows[1:]
    num_byzantine = data.draw(st.integers(0, (len(rows) - 1) // 2))
    result = monna(rows, num_byzantine=num_byzantine, pivot=pivot)
    distances = np.array([exact_distance(row, pivot) for row in rows])
    assert result.scores is not None
    np.testing.assert_allclose(result.scores, distances, rtol=1e-9)
    assert result.selected.sum() == len(rows) - num_byzantine
    out = distances[~result.selected].min(initial=np.inf)
    # A near tie may fall either way.
    assert distances[result.selected].max() <= out * (1 + 1e-9)


@pytest.mark.peers
@given(st.integers(0, 10_000), st.integers(1, 12), st.data())
def test_agrees_with_byzfl_whose_pivot_is_one_of_the_rows(
    seed: int, num_rows: int, data: st.DataObject
) -> None:
    num_byzantine = data.draw(st.integers(0, (num_rows - 1) // 2))
    index = data.draw(st.integers(0, num_rows - 1))
    rows = honest_rows(seed, num_rows, dim=5)
    theirs = byzfl.MoNNA(num_byzantine, index)(rows.astype(np.float64))
    ours = monna(rows, num_byzantine=num_byzantine, pivot=rows[index])
    np.testing.assert_allclose(ours.vector, theirs, rtol=ROUNDING)


def test_the_pivot_is_not_averaged() -> None:
    rows = np.array([[0.0], [2.0], [10.0]], dtype=np.float32)
    result = monna(rows, num_byzantine=1, pivot=np.array([4.0], dtype=np.float32))
    assert result.vector.tolist() == [1.0]
    assert result.weights.tolist() == [0.5, 0.5, 0.0]
    assert result.scores is not None
    assert result.scores.tolist() == [16.0, 4.0, 36.0]
    assert result.gram is not None
    assert result.gram.num_rows == 3


@given(matrices(min_rows=4, elements=TIED_FLOAT), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_change_a_bit(rows: Matrix, random: Random) -> None:
    pivot, rows = rows[0], rows[1:]
    order = list(range(len(rows)))
    random.shuffle(order)
    first = monna(rows, num_byzantine=1, pivot=pivot)
    second = monna(rows[order], num_byzantine=1, pivot=pivot)
    assert same_bits(first.vector, second.vector)


def test_of_rows_equally_near_the_lesser_is_kept() -> None:
    rows = np.array([[1.0], [0.0], [-1.0]], dtype=np.float32)
    result = monna(rows, num_byzantine=1, pivot=np.zeros(1, dtype=np.float32))
    assert result.selected.tolist() == [False, True, True]


@looped("name", ATTACKS)
def test_result_is_no_farther_from_the_pivot_than_the_farthest_honest_row(name: str) -> None:
    honest = honest_rows(seed=3, num_rows=8, dim=50)
    pivot, honest = honest[0], honest[1:]
    rows = np.vstack([honest, attack(name, honest, 3)])
    vector = monna(rows, num_byzantine=3, pivot=pivot).vector
    farthest = max(exact_distance(row, pivot) for row in honest)
    assert exact_distance(vector, pivot) <= farthest


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_rows_and_pivot_may_be_shifted_and_scaled_together(scale: float) -> None:
    rows = honest_rows(seed=5, num_rows=9, dim=30)
    before = monna(rows[1:], num_byzantine=2, pivot=rows[0])
    moved = ((rows + 7.0) * scale).astype(np.float32)
    after = monna(moved[1:], num_byzantine=2, pivot=moved[0])
    assert before.selected.tolist() == after.selected.tolist()
    np.testing.assert_allclose(after.vector, (before.vector + 7.0) * scale, rtol=1e-6)


def test_with_f_zero_it_is_the_mean() -> None:
    rows = honest_rows(seed=4, num_rows=6, dim=20)
    result = monna(rows, num_byzantine=0, pivot=np.zeros(20, dtype=np.float32))
    assert same_bits(result.vector, mean(rows).vector)


def test_equal_rows_give_that_row() -> None:
    rows = np.zeros((3, 2), dtype=np.float32)
    assert monna(rows, num_byzantine=1, pivot=rows[0]).vector.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("pivot", [np.zeros(2, dtype=np.float32), np.zeros(3)])
def test_pivot_of_wrong_shape_or_type_is_refused(pivot: Matrix) -> None:
    rows = honest_rows(seed=0, num_rows=4, dim=3)
    with pytest.raises(AggregationError, match=r"pivot of shape .* of monna must be float32"):
        monna(rows, num_byzantine=1, pivot=pivot)


def test_pivot_that_is_not_finite_is_refused() -> None:
    rows = honest_rows(seed=0, num_rows=4, dim=3)
    with pytest.raises(AggregationError, match="finite"):
        monna(rows, num_byzantine=1, pivot=np.full(3, np.nan, dtype=np.float32))


def test_too_few_rows_are_refused() -> None:
    rows = honest_rows(seed=0, num_rows=4, dim=3)
    with pytest.raises(TooFewUpdatesError, match=r"num_byzantine=2 of monna .* got n=4"):
        monna(rows, num_byzantine=2, pivot=rows[0])
    with pytest.raises(TooFewUpdatesError, match=r"num_byzantine=2 of monna .* got n=3"):
        monna_weights(as_rows(rows).gram(), num_byzantine=2)


def test_negative_f_is_refused() -> None:
    rows = honest_rows(seed=0, num_rows=4, dim=3)
    with pytest.raises(AggregationError, match="num_byzantine=-1"):
        monna(rows, num_byzantine=-1, pivot=rows[0])
