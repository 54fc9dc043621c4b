from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.rules.mean import mean
from aggregators.rules.mean_around_median import mean_around_median
from tests.aggregators.matrices import (
    ATTACKS,
    TIED_FLOAT,
    Matrix,
    attack,
    honest_rows,
    matrices,
    same_bits,
)
from tests.looped import looped
from tests.peers import byzfl

# The vector is rounded once to float32.
ROUNDING = 2.0**-23


@given(matrices(elements=TIED_FLOAT), st.data())
def test_agrees_with_the_definition_on_ties(rows: Matrix, data: st.DataObject) -> None:
    num_byzantine = data.draw(st.integers(0, (len(rows) - 1) // 2))
    keep = len(rows) - num_byzantine
    vector = mean_around_median(rows, num_byzantine=num_byzantine).vector
    for result, column in zip(vector.tolist(), rows.astype(float).T.tolist(), strict=True):
        middle = float(np.median(column))
        nearest = sorted(column, key=lambda x: (abs(x - middle), x))
        assert result == pytest.approx(sum(nearest[:keep]) / keep, rel=ROUNDING, abs=1e-9)


@pytest.mark.peers
@given(st.integers(0, 10_000), st.integers(1, 12), st.data())
def test_agrees_with_byzfl_where_nothing_ties(
    seed: int, num_rows: int, data: st.DataObject
) -> None:
    num_byzantine = data.draw(st.integers(0, (num_rows - 1) // 2))
    rows = honest_rows(seed, num_rows, dim=7)
    theirs = byzfl.Meamed(num_byzantine)(rows.astype(np.float64))
    ours = mean_around_median(rows, num_byzantine=num_byzantine).vector
    np.testing.assert_allclose(ours, theirs, rtol=ROUNDING)


@pytest.mark.peers
def test_of_values_equally_near_the_lesser_is_kept_where_byzfl_goes_by_position() -> None:
    # The median is 0 and both ends are as near to it.
    column = np.array([[4.0], [0.0], [0.0], [0.0], [-4.0]], dtype=np.float32)
    for rows in (column, column[::-1]):
        assert mean_around_median(rows, num_byzantine=1).vector.tolist() == [-1.0]
    theirs = {float(byzfl.Meamed(1)(rows)[0]) for rows in (column, column[::-1])}
    assert theirs == {-1.0, 1.0}


@given(matrices(), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_change_a_bit(rows: Matrix, random: Random) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    num_byzantine = (len(rows) - 1) // 2
    first = mean_around_median(rows, num_byzantine=num_byzantine)
    second = mean_around_median(rows[order], num_byzantine=num_byzantine)
    assert same_bits(first.vector, second.vector)


@looped("name", ATTACKS)
@looped("num_byzantine", [1, 3])
def test_attackers_cannot_leave_the_widened_range_of_the_others(
    name: str, num_byzantine: int
) -> None:
    honest = honest_rows(seed=2, num_rows=7, dim=200)
    rows = np.vstack([honest, attack(name, honest, num_byzantine)])
    vector = mean_around_median(rows, num_byzantine=num_byzantine).vector
    width = honest.max(axis=0) - honest.min(axis=0)
    assert (vector >= honest.min(axis=0) - width).all()
    assert (vector <= honest.max(axis=0) + width).all()


def test_one_attacker_more_than_f_can() -> None:
    honest = honest_rows(seed=2, num_rows=5, dim=20)
    rows = np.vstack([honest, attack("plus_1e30", honest, 2)])
    assert (mean_around_median(rows, num_byzantine=1).vector > 1e28).all()


def test_with_f_zero_it_is_the_mean() -> None:
    rows = honest_rows(seed=1, num_rows=7, dim=30)
    result = mean_around_median(rows, num_byzantine=0)
    np.testing.assert_allclose(result.vector, mean(rows).vector, rtol=ROUNDING)


def test_every_row_has_an_equal_vote() -> None:
    result = mean_around_median(np.zeros((4, 1), dtype=np.float32), num_byzantine=1)
    assert result.vector.tolist() == [0.0]
    assert result.weights.tolist() == [0.25] * 4
    assert result.selected.all()


@pytest.mark.parametrize(("num_rows", "num_byzantine"), [(4, 2), (1, 1)])
def test_too_few_rows_are_refused(num_rows: int, num_byzantine: int) -> None:
    message = f"num_byzantine={num_byzantine} of mean-around-median .* got n={num_rows}"
    with pytest.raises(TooFewUpdatesError, match=message):
        mean_around_median(np.ones((num_rows, 2), dtype=np.float32), num_byzantine=num_byzantine)


def test_negative_f_is_refused() -> None:
    with pytest.raises(AggregationError, match="num_byzantine=-1"):
        mean_around_median(np.ones((3, 2), dtype=np.float32), num_byzantine=-1)
