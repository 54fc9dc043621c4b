import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.errors import AggregationError
from aggregators.rows.gram import Gram
from tests.aggregators.matrices import (
    Floats,
    Matrix,
    exact_distances,
    exact_products,
    honest_rows,
    near_identical_rows,
    tied_rows,
)


def gram_of(rows: Matrix | Floats) -> Gram:
    """Build the Gram matrix of rows by its definition."""
    wide = rows.astype(np.float64)
    distances = np.array([((wide - row) ** 2).sum(axis=1) for row in wide])
    return Gram(inner=wide @ wide.T, squared_distances=distances)


def assert_valid(gram: Gram) -> None:
    distances = gram.squared_distances
    assert (distances >= 0.0).all()
    assert not np.diagonal(distances).any()
    np.testing.assert_array_equal(distances, distances.T)


def assert_gram(found: Gram, rows: Floats, rtol: float = 1e-12) -> None:
    expected = gram_of(rows)
    size = np.abs(expected.inner).max()
    np.testing.assert_allclose(found.inner, expected.inner, rtol=rtol, atol=rtol * size)
    np.testing.assert_allclose(
        found.squared_distances, expected.squared_distances, rtol=rtol, atol=rtol * size
    )
    assert_valid(found)


@given(st.integers(0, 1000), st.integers(1, 8))
def test_distances_follow_from_exact_inner_products(seed: int, num_rows: int) -> None:
    rows = tied_rows(seed, num_rows, 5)
    gram = Gram.from_inner(exact_products(rows))
    assert gram.squared_distances.tolist() == exact_distances(rows).tolist()
    assert gram.num_rows == num_rows
    assert_valid(gram)


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-3, 1.0])
def test_distances_from_inner_products_are_as_near_as_those_allow(spread: float) -> None:
    rows = near_identical_rows(1, 6, 50, spread=spread)
    gram = Gram.from_inner(exact_products(rows))
    squares = np.diagonal(gram.inner)
    allowed = 2.0**-50 * np.add.outer(squares, squares)
    assert (np.abs(gram.squared_distances - exact_distances(rows)) <= allowed).all()
    assert_valid(gram)


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (np.zeros(3), r"inner of shape \(3,\) must have shape"),
        (np.zeros((2, 3)), r"inner of shape \(2, 3\) must have shape"),
        (np.zeros((0, 0)), "n >= 1"),
        (np.array([[1.0, np.nan], [np.nan, 1.0]]), "inner products must be finite"),
        (np.array([[np.inf]]), "inner products must be finite"),
    ],
)
def test_inner_products_that_are_none_are_refused(inner: Floats, message: str) -> None:
    with pytest.raises(AggregationError, match=message):
        Gram.from_inner(inner)


def test_norms_are_lengths_also_where_rounding_made_a_square_negative() -> None:
    gram = Gram(inner=np.array([[9.0, 0.0], [0.0, -1e-30]]), squared_distances=np.zeros((2, 2)))
    assert gram.norms.tolist() == [3.0, 0.0]


def test_rows_are_taken_in_the_order_given() -> None:
    rows = honest_rows(2, 6, 20).astype(np.float64)
    order = [4, 0, 5]
    assert_gram(gram_of(rows).take(order), rows[order])


@given(st.integers(0, 1000))
def test_mixed_is_the_gram_of_averages(seed: int) -> None:
    rows = honest_rows(seed, 7, 20).astype(np.float64)
    matrix = np.random.default_rng(seed).dirichlet(np.ones(7), 4)
    assert_gram(gram_of(rows).mixed(matrix), matrix @ rows)


def test_mixed_keeps_the_digits_of_rows_that_are_close_together() -> None:
    rows = near_identical_rows(3, 7, 40).astype(np.float64)
    matrix = np.random.default_rng(3).dirichlet(np.ones(7), 4)
    found = gram_of(rows).mixed(matrix).squared_distances
    centred = matrix @ (rows - rows[0])
    expected = gram_of(centred).squared_distances
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    # The control: what inner products alone would give.
    naive = Gram.from_inner((matrix @ rows) @ (matrix @ rows).T).squared_distances
    assert np.abs(naive - expected).max() > 1e-6 * expected.max()


@given(st.integers(0, 1000))
def test_scaled_is_the_gram_of_scaled_rows(seed: int) -> None:
    rows = honest_rows(seed, 6, 20).astype(np.float64)
    factors = np.random.default_rng(seed).uniform(0, 2, 6)
    factors[0] = 0.0
    assert_gram(gram_of(rows).scaled(factors), factors[:, np.newaxis] * rows)


def test_scaling_all_rows_alike_keeps_the_digits_of_distances() -> None:
    gram = gram_of(near_identical_rows(4, 6, 40))
    halved = gram.scaled(np.full(6, 0.5))
    np.testing.assert_array_equal(halved.squared_distances, 0.25 * gram.squared_distances)
