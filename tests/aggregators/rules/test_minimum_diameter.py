from itertools import combinations
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.rules.mean import mean
from aggregators.rules.minimum_diameter import minimum_diameter
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


def sorted_rows(rows: Matrix) -> Matrix:
    """Sort rows of finite values without -0.0 lexicographically."""
    return rows[np.lexsort(rows.T[::-1])]


def squared_diameter(rows: Matrix) -> float:
    return max((exact_distance(a, b) for a, b in combinations(rows, 2)), default=0.0)


@given(matrices(max_rows=9, elements=TIED_FLOAT), st.data())
def test_takes_the_first_of_the_best_subsets_on_ties(rows: Matrix, data: st.DataObject) -> None:
    rows = sorted_rows(rows + np.float32(0.0))
    num_byzantine = data.draw(st.integers(0, (len(rows) - 1) // 2))
    # Multiples of 1/4 have exact distances; `min` keeps the first of equals.
    best = min(
        combinations(range(len(rows)), len(rows) - num_byzantine),
        key=lambda subset: squared_diameter(rows[list(subset)]),
    )
    result = minimum_diameter(rows, num_byzantine=num_byzantine)
    assert tuple(np.flatnonzero(result.selected).tolist()) == best
    expected = rows[list(best)].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(result.vector, expected, rtol=ROUNDING, atol=1e-9)


@given(matrices(max_rows=8, elements=ANY_FLOAT), st.data())
def test_no_subset_has_a_lesser_diameter(rows: Matrix, data: st.DataObject) -> None:
    num_byzantine = data.draw(st.integers(0, (len(rows) - 1) // 2))
    result = minimum_diameter(rows, num_byzantine=num_byzantine)
    count = len(rows) - num_byzantine
    assert result.selected.sum() == count
    least = min(squared_diameter(rows[list(s)]) for s in combinations(range(len(rows)), count))
    # A near tie may fall either way.
    assert squared_diameter(rows[result.selected]) <= least * (1 + 1e-9)


@pytest.mark.peers
@given(st.integers(0, 10_000), st.integers(3, 8), st.data())
def test_agrees_with_byzfl(seed: int, num_rows: int, data: st.DataObject) -> None:
    num_byzantine = data.draw(st.integers(0, (num_rows - 1) // 2))
    # Subsets that share the two rows farthest apart tie, and byzfl takes the first by position.
    rows = sorted_rows(honest_rows(seed, num_rows, dim=5))
    theirs = byzfl.MDA(num_byzantine)(rows.astype(np.float64))
    ours = minimum_diameter(rows, num_byzantine=num_byzantine).vector
    np.testing.assert_allclose(ours, theirs, rtol=ROUNDING)


@given(matrices(min_rows=5, elements=TIED_FLOAT), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_change_a_bit(rows: Matrix, random: Random) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    first = minimum_diameter(rows, num_byzantine=2)
    second = minimum_diameter(rows[order], num_byzantine=2)
    assert same_bits(first.vector, second.vector)


@looped("name", ATTACKS)
@looped("num_byzantine", [1, 3])
def test_result_stays_near_an_honest_row(name: str, num_byzantine: int) -> None:
    honest = honest_rows(seed=3, num_rows=7, dim=50)
    rows = np.vstack([honest, attack(name, honest, num_byzantine)])
    vector = minimum_diameter(rows, num_byzantine=num_byzantine).vector
    assert min(exact_distance(vector, row) for row in honest) <= squared_diameter(honest)


@pytest.mark.parametrize("name", ["times_1000", "plus_1e30", "copies_far"])
def test_far_attackers_are_excluded(name: str) -> None:
    honest = honest_rows(seed=3, num_rows=7, dim=50)
    rows = np.vstack([attack(name, honest, 3), honest])
    result = minimum_diameter(rows, num_byzantine=3)
    assert result.selected.tolist() == [False] * 3 + [True] * 7
    assert same_bits(result.vector, mean(honest).vector)


def test_many_rows_take_no_enumeration() -> None:
    # More than 10**22 subsets.
    honest = honest_rows(seed=4, num_rows=80, dim=20)
    rows = np.vstack([honest, attack("times_1000", honest, 20)])
    result = minimum_diameter(rows, num_byzantine=20, max_subsets=10**30)
    assert result.selected.tolist() == [True] * 80 + [False] * 20


def test_with_f_zero_it_is_the_mean() -> None:
    rows = honest_rows(seed=4, num_rows=6, dim=20)
    assert same_bits(minimum_diameter(rows, num_byzantine=0).vector, mean(rows).vector)


@looped("value", [0.0, -3.5, 1e30, 1e-30])
@looped("num_rows, num_byzantine", [(1, 0), (5, 2)])
def test_equal_rows_give_that_row(value: float, num_rows: int, num_byzantine: int) -> None:
    rows = np.full((num_rows, 4), value, dtype=np.float32)
    result = minimum_diameter(rows, num_byzantine=num_byzantine)
    np.testing.assert_allclose(result.vector, rows[0], rtol=ROUNDING)
    assert result.selected.sum() == num_rows - num_byzantine


def test_too_many_subsets_are_refused() -> None:
    rows = honest_rows(seed=0, num_rows=30, dim=3)
    message = r"num_byzantine=10 of minimum-diameter among n=30 gives C\(n, f\)=30045015 subsets"
    with pytest.raises(AggregationError, match=message + ", more than max_subsets=1000000"):
        minimum_diameter(rows, num_byzantine=10)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(TooFewUpdatesError, match=r"num_byzantine=2 of minimum-diameter .* n=4"):
        minimum_diameter(honest_rows(seed=0, num_rows=4, dim=3), num_byzantine=2)


def test_negative_f_is_refused() -> None:
    with pytest.raises(AggregationError, match="num_byzantine=-1"):
        minimum_diameter(honest_rows(seed=0, num_rows=4, dim=3), num_byzantine=-1)
