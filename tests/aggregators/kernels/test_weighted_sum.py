import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.rows.dense_rows import as_rows
from tests.aggregators.matrices import (
    ANY_FLOAT,
    Matrix,
    cancelling_rows,
    exact_combination,
    matrices,
    mixed_magnitudes,
    scaled_rows,
    tied_rows,
    ulps,
)
from tests.looped import looped


def votes_for(num_rows: int, seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.random.default_rng(seed).integers(1, 1 << 20, num_rows).astype(np.float64)


def assert_exact(rows: Matrix) -> None:
    """Check sums with whole weights, as sample counts are, against rational numbers."""
    votes = votes_for(len(rows))
    total = math.fsum(votes.tolist())
    # One step of float32: the sum is rounded to float64 and divided before it is rounded again.
    assert ulps(as_rows(rows).combine(votes, total), exact_combination(rows, votes, total)) <= 1


@looped("num_rows", [*range(1, 41), 100, 257])
def test_sums_are_exact_to_one_rounding(num_rows: int) -> None:
    for dim in (1, 17):
        assert_exact(cancelling_rows(num_rows, num_rows, dim))
        assert_exact(tied_rows(num_rows, num_rows, dim))


@pytest.mark.parametrize("dim", [1, 15, 16, 17, 255, 1023, 1024, 1025, 2047, 2048, 2049])
def test_every_width_is_exact_to_one_rounding(dim: int) -> None:
    assert_exact(cancelling_rows(dim, 11, dim))


def test_columns_that_cancel_altogether_are_zero() -> None:
    rows = cancelling_rows(1, 21, 50)
    both = np.vstack([rows, -rows])
    assert as_rows(both).combine(np.ones(42)).tolist() == [0.0] * 50
    assert not np.signbit(as_rows(both).combine(np.ones(42))).any()


@given(matrices(elements=ANY_FLOAT))
def test_equal_weights_of_any_values_are_exact_to_their_compensation(rows: Matrix) -> None:
    votes = np.ones(len(rows))
    found = as_rows(rows).combine(votes, float(len(rows)))
    expected = exact_combination(rows, votes, float(len(rows)))
    # Two float64 hold what cancels down to 2**-100 of the largest term.
    largest = np.abs(rows.astype(np.float64)).max(axis=0)
    error = np.abs(found.astype(np.float64) - expected)
    assert (error <= 2.0**-23 * np.abs(expected) + 2.0**-98 * largest + 2.0**-149).all()


@given(st.integers(0, 1000))
def test_scaled_rows_are_rounded_to_float32_before_they_are_added(seed: int) -> None:
    rows = mixed_magnitudes(seed, 9, 20)
    factors = np.random.default_rng(seed).random(9)
    factors[3] = 1.0
    votes = votes_for(9)
    found = as_rows(rows).scaled(factors).combine(votes, votes.sum())
    assert np.array_equal(found, as_rows(scaled_rows(rows, factors)).combine(votes, votes.sum()))


def test_plain_float64_sums_fail_where_ours_hold() -> None:
    rows = np.array([[1e30], [1.0], [-1e30]], dtype=np.float32)
    assert rows.astype(np.float64).sum(axis=0).tolist() == [0.0]
    assert as_rows(rows).combine(np.ones(3)).tolist() == [1.0]


@looped("bad", [np.nan, np.inf, -np.inf])
@looped("column", [0, 15, 16, 39])
def test_a_single_value_that_is_not_finite_is_found(bad: float, column: int) -> None:
    rows = np.ones((5, 40), dtype=np.float32)
    rows[4, column] = bad
    with pytest.raises(ValueError, match="rows must be finite"):
        as_rows(rows).combine(np.ones(5))
