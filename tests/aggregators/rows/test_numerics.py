import math
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.errors import AggregationError
from aggregators.rows.numerics import (
    MAX_TERMS,
    MAX_WEIGHT,
    MIN_WEIGHT,
    order_free_sum,
)
from tests.aggregators.matrices import (
    LARGEST,
    SMALLEST,
    Floats,
    Matrix,
    cancelling_rows,
    matrices,
    same_bits,
)
from tests.looped import looped


def wide_range_rows(seed: int, num_rows: int = 1000, dim: int = 40) -> Matrix:
    generator = np.random.default_rng(seed)
    magnitudes = 10.0 ** generator.uniform(-8, 8, (num_rows, dim))
    signs = generator.choice([-1.0, 1.0], (num_rows, dim))
    rows: Matrix = (magnitudes * signs).astype(np.float32)
    return rows


def exact_sums(terms: Matrix | Floats) -> list[Fraction]:
    return [sum((Fraction(x) for x in column), Fraction(0)) for column in terms.T.tolist()]


def worst_relative_error(found: Floats | Matrix, exact: list[Fraction]) -> float:
    return max(
        float(abs(Fraction(x) - value) / abs(value))
        for x, value in zip(found.tolist(), exact, strict=True)
    )


def plain_sum(terms: Matrix | Floats) -> Matrix | Floats:
    """Add row by row in the type of the terms."""
    total: Matrix | Floats = np.zeros_like(terms[0])
    for row in terms:
        total = total + row
    return total


def test_sum_is_exact_from_1e_minus_8_to_1e8() -> None:
    rows = wide_range_rows(seed=1)
    sums = order_free_sum(rows.astype(np.float64))
    expected = [math.fsum(column) for column in rows.astype(np.float64).T.tolist()]
    # 1000 terms over 54 binary orders of magnitude fit in the two lanes: nothing is dropped.
    assert sums.tolist() == expected


def test_float32_accumulation_fails_where_ours_hold() -> None:
    rows = cancelling_rows(seed=2, num_rows=1000, dim=30)
    exact = exact_sums(rows)
    assert worst_relative_error(plain_sum(rows), exact) > 1e-6
    assert worst_relative_error(order_free_sum(rows.astype(np.float64)), exact) < 1e-15


def test_float64_accumulation_loses_digits_where_ours_hold() -> None:
    # Sums near 1e-8 of terms near 1e8 leave plain float64 few digits.
    rows = cancelling_rows(seed=2, num_rows=1000, dim=30).astype(np.float64)
    assert worst_relative_error(plain_sum(rows), exact_sums(rows)) > 1e-12


def test_a_thousand_rounds_are_added_up_to_1e_minus_6() -> None:
    generator = np.random.default_rng(3)
    steps = (10.0 ** generator.uniform(-8, 8, (1000, 30))).astype(np.float32)
    # Rounds that undo each other leave what the small ones did.
    steps[1::2] = -steps[::2]
    steps[::50] = (10.0 ** generator.uniform(-8, -6, (20, 30))).astype(np.float32)
    steps[1::50] = 0.0
    exact = exact_sums(steps)
    assert worst_relative_error(order_free_sum(steps.astype(np.float64)), exact) < 1e-6
    assert worst_relative_error(plain_sum(steps), exact) > 1e-6


def test_float64_accumulation_depends_on_the_order() -> None:
    terms = wide_range_rows(seed=3).astype(np.float64)
    assert not same_bits(terms.sum(axis=0), terms[::-1].sum(axis=0))
    assert same_bits(order_free_sum(terms.copy()), order_free_sum(terms[::-1].copy()))


def test_small_terms_survive_cancellation_of_large_ones() -> None:
    terms = np.array([[1e8], [1e-8], [-1e8]], dtype=np.float32).astype(np.float64)
    assert order_free_sum(terms).tolist() == [float(np.float32(1e-8))]


@given(matrices(), st.randoms(use_true_random=False))
def test_sum_is_invariant_to_row_order(rows: Matrix, random: Random) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    terms = rows.astype(np.float64)
    assert same_bits(order_free_sum(terms.copy()), order_free_sum(terms[order]))


@given(matrices(max_rows=40))
def test_error_is_below_the_documented_bound(rows: Matrix) -> None:
    sums = order_free_sum(rows.astype(np.float64))
    for column, result in zip(rows.astype(np.float64).T.tolist(), sums.tolist(), strict=True):
        exact = sum((Fraction(x) for x in column), Fraction(0))
        dropped = Fraction(max(abs(x) for x in column)) / 2**74
        rounding = abs(exact) / 2**52
        assert abs(Fraction(result) - exact) <= dropped + rounding


@looped("num_terms", [1, 2, 3, 1023, 1024, 1025])
def test_lanes_hold_equal_largest_terms(num_terms: int) -> None:
    largest = np.full((num_terms, 1), np.finfo(np.float32).max, dtype=np.float64)
    exact = Fraction(float(largest[0, 0])) * num_terms
    assert order_free_sum(largest).tolist() == [float(exact)]


def test_zero_sums_are_positive_zero() -> None:
    assert same_bits(order_free_sum(np.full((3, 2), -0.0)), np.zeros(2))


def test_too_many_terms_are_refused() -> None:
    with pytest.raises(AggregationError, match="must be at most"):
        order_free_sum(np.zeros((MAX_TERMS + 1, 1)))


@looped("num_terms", [1, 2, 3, 1023, 1024, 1025, MAX_TERMS])
def test_any_number_of_terms_sums_exactly(num_terms: int) -> None:
    terms = np.arange(num_terms, dtype=np.float64)[:, np.newaxis] - 7.5
    exact = num_terms * (num_terms - 1) / 2 - 7.5 * num_terms
    assert order_free_sum(terms).tolist() == [exact]


def test_weights_between_the_bounds_keep_products_in_range() -> None:
    smallest, largest = MIN_WEIGHT * float(SMALLEST), MAX_WEIGHT * LARGEST
    terms = np.array([[smallest], [smallest]])
    assert order_free_sum(terms).tolist() == [2.0 * smallest]
    assert order_free_sum(np.full((3, 1), largest)).tolist() == [3.0 * largest]
