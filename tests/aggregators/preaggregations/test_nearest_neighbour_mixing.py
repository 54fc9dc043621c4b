from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.preaggregations.nearest_neighbour_mixing import (
    nearest_neighbour_mixing,
    nearest_neighbour_mixing_matrix,
)
from aggregators.rows.dense_rows import as_rows
from aggregators.rows.gram import Gram
from aggregators.rows.rows import Rows
from tests.aggregators.matrices import (
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

# Every entry is rounded once to float32.
ROUNDING = 2.0**-23


def values(rows: Rows) -> Matrix:
    return rows.read(0, rows.dim)


@pytest.mark.peers
@given(st.integers(0, 10_000), st.integers(1, 12), st.data())
def test_agrees_with_byzfl(seed: int, num_rows: int, data: st.DataObject) -> None:
    num_byzantine = data.draw(st.integers(0, (num_rows - 1) // 2))
    rows = honest_rows(seed, num_rows, dim=5)
    theirs = byzfl.NNM(num_byzantine)(rows.astype(np.float64))
    ours = values(nearest_neighbour_mixing(rows, num_byzantine=num_byzantine))
    np.testing.assert_allclose(ours, theirs, rtol=ROUNDING)


@given(matrices(elements=TIED_FLOAT), st.data())
def test_matrix_averages_each_row_with_its_nearest(rows: Matrix, data: st.DataObject) -> None:
    num_byzantine = data.draw(st.integers(0, (len(rows) - 1) // 2))
    count = len(rows) - num_byzantine
    mixing = nearest_neighbour_mixing_matrix(as_rows(rows).gram(), num_byzantine=num_byzantine)
    for i, weights in enumerate(mixing):
        distances = np.array([exact_distance(rows[i], row) for row in rows])
        distances[i] = -1.0
        nearest = sorted(range(len(rows)), key=lambda j: (distances[j], j))[:count]
        expected = np.zeros(len(rows))
        expected[nearest] = 1.0 / count
        assert weights.tolist() == expected.tolist()


@given(matrices(elements=TIED_FLOAT), st.randoms(use_true_random=False))
def test_permuting_rows_permutes_the_result_bit_for_bit(rows: Matrix, random: Random) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    num_byzantine = (len(rows) - 1) // 2
    first = values(nearest_neighbour_mixing(rows, num_byzantine=num_byzantine))
    second = values(nearest_neighbour_mixing(rows[order], num_byzantine=num_byzantine))
    assert same_bits(first[order], second)


def test_with_f_zero_every_row_is_the_mean() -> None:
    rows = honest_rows(seed=1, num_rows=6, dim=20)
    mixed = values(nearest_neighbour_mixing(rows, num_byzantine=0))
    expected = np.tile(rows.astype(np.float64).mean(axis=0), (6, 1))
    np.testing.assert_allclose(mixed, expected, rtol=ROUNDING)


@looped("name", ATTACKS)
def test_honest_rows_stay_within_the_distance_of_the_farthest_other(name: str) -> None:
    honest = honest_rows(seed=2, num_rows=7, dim=50)
    rows = np.vstack([attack(name, honest, 3), honest])
    mixed = values(nearest_neighbour_mixing(rows, num_byzantine=3))[3:]
    for row, its_mean in zip(honest, mixed, strict=True):
        farthest = max(exact_distance(row, other) for other in honest)
        assert exact_distance(row, its_mean) <= farthest


def test_rows_are_drawn_together() -> None:
    rows = honest_rows(seed=3, num_rows=10, dim=50)
    mixed = values(nearest_neighbour_mixing(rows, num_byzantine=3))
    assert mixed.std(axis=0).max() < rows.std(axis=0).max()


@looped("value", [0.0, -3.5, 1e30, 1e-30])
@looped("num_rows, num_byzantine", [(1, 0), (5, 2)])
def test_equal_rows_stay_equal(value: float, num_rows: int, num_byzantine: int) -> None:
    rows = np.full((num_rows, 3), value, dtype=np.float32)
    mixed = values(nearest_neighbour_mixing(rows, num_byzantine=num_byzantine))
    np.testing.assert_allclose(mixed, rows, rtol=ROUNDING)


def test_a_row_is_its_own_nearest_also_among_copies() -> None:
    gram = Gram(inner=np.zeros((5, 5)), squared_distances=np.zeros((5, 5)))
    mixing = nearest_neighbour_mixing_matrix(gram, num_byzantine=2)
    assert (np.diagonal(mixing) > 0).all()


def test_too_few_rows_are_refused() -> None:
    rows = honest_rows(seed=0, num_rows=4, dim=3)
    message = "num_byzantine=2 of nnm .* got n=4"
    with pytest.raises(TooFewUpdatesError, match=message):
        nearest_neighbour_mixing(rows, num_byzantine=2)
    with pytest.raises(TooFewUpdatesError, match=message):
        nearest_neighbour_mixing_matrix(as_rows(rows).gram(), num_byzantine=2)


def test_negative_f_is_refused() -> None:
    with pytest.raises(AggregationError, match="num_byzantine=-1"):
        nearest_neighbour_mixing(honest_rows(seed=0, num_rows=4, dim=3), num_byzantine=-1)
