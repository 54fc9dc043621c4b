from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aggregators.rows.dense_rows import as_rows
from aggregators.rows.rows import Rows, canonical_order
from tests.aggregators.matrices import ANY_FLOAT, TIED_FLOAT, Matrix, honest_rows, matrices


def test_dense_rows_are_rows() -> None:
    assert isinstance(as_rows(np.zeros((2, 3), dtype=np.float32)), Rows)


@given(
    matrices(elements=TIED_FLOAT) | matrices(elements=ANY_FLOAT),
    st.randoms(use_true_random=False),
)
def test_canonical_order_sorts_rows_by_value(matrix: Matrix, random: Random) -> None:
    shuffled = list(range(len(matrix)))
    random.shuffle(shuffled)
    matrix = matrix[shuffled]
    order = canonical_order(as_rows(matrix))
    assert sorted(order) == list(range(len(matrix)))
    # Python compares tuples lexicographically; the second entry puts -0.0 before 0.0.
    keys = [[(float(x), not np.signbit(x)) for x in row] for row in matrix]
    assert [keys[i] for i in order] == sorted(keys)


def test_canonical_order_looks_past_long_common_prefixes() -> None:
    matrix = np.zeros((4, 200_000), dtype=np.float32)
    matrix[0, 199_999], matrix[1, 100_000], matrix[2, 199_999] = 1.0, -1.0, -2.0
    assert canonical_order(as_rows(matrix)) == [1, 2, 3, 0]


def test_keys_tell_equal_rows_apart_the_first_one_first() -> None:
    matrix = as_rows(np.array([[1.0], [0.0], [0.0], [0.0]], dtype=np.float32))
    first = np.array([0.0, 2.0, 1.0, 1.0])
    second = np.array([0.0, 0.0, 5.0, 4.0])
    assert canonical_order(matrix, (first, second)) == [3, 2, 1, 0]


def test_rows_with_equal_values_and_keys_keep_the_order_they_came_in() -> None:
    matrix = as_rows(np.zeros((5, 100), dtype=np.float32))
    assert canonical_order(matrix, (np.ones(5),)) == [0, 1, 2, 3, 4]


@given(st.integers(0, 1000), st.integers(-30, 30), st.integers(-1000, 1000))
def test_positive_scaling_and_translation_keep_the_order(
    seed: int, exponent: int, shift: int
) -> None:
    rows = np.round(honest_rows(seed, 8, 5) * 64)
    order = canonical_order(as_rows(rows))
    assert canonical_order(as_rows(rows * np.float32(2.0**exponent))) == order
    assert canonical_order(as_rows(rows + np.float32(shift))) == order


def test_mixed_rows_are_ordered_by_their_averages() -> None:
    rows = as_rows(np.array([[0.0], [4.0]], dtype=np.float32))
    matrix = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    assert canonical_order(rows.mixed(matrix)) == [2, 1, 0]
