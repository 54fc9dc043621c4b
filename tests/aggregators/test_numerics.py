import math
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.errors import AggregationError
from aggregators.numerics import MAX_TERMS, order_free_sum, weighted_mean
from aggregators.rows import as_rows
from tests.aggregators.matrices import Matrix, matrices, same_bits


def wide_range_rows(seed: int, num_rows: int = 1000, dim: int = 40) -> Matrix:
    generator = np.random.default_rng(seed)
    magnitudes = 10.0 ** generator.uniform(-8, 8, (num_rows, dim))
    signs = generator.choice([-1.0, 1.0], (num_rows, dim))
    rows: Matrix = (magnitudes * signs).astype(np.float32)
    return rows


def fsum_mean(rows: Matrix, weights: list[int]) -> list[float]:
    """Exact sums and one division: products of float32 and small integers are exact."""
    total = sum(weights)
    columns = rows.astype(np.float64).T.tolist()
    return [
        math.fsum(w * x for w, x in zip(weights, column, strict=True)) / total for column in columns
    ]


def test_sum_is_exact_from_1e_minus_8_to_1e8() -> None:
    rows = wide_range_rows(seed=1)
    sums = order_free_sum(rows.astype(np.float64))
    expected = [math.fsum(column) for column in rows.astype(np.float64).T.tolist()]
    # 1000 terms over 54 binary orders of magnitude fit in the two lanes: nothing is dropped.
    assert sums.tolist() == expected


def test_weighted_mean_agrees_with_fsum_from_1e_minus_8_to_1e8() -> None:
    rows = wide_range_rows(seed=2)
    weights = [1 + 37 * i % 1000 for i in range(len(rows))]
    result = weighted_mean(as_rows(rows), np.array(weights, dtype=np.float64))
    # Weights widen the span to 64 orders; what is dropped is below 2**-74 of the largest term.
    np.testing.assert_allclose(result, fsum_mean(rows, weights), rtol=1e-12)


def test_float32_accumulation_would_not_pass() -> None:
    rows = wide_range_rows(seed=2)
    expected = np.array(fsum_mean(rows, [1] * len(rows)))
    accumulated = np.zeros(rows.shape[1], dtype=np.float32)
    for row in rows:
        accumulated += row
    errors = np.abs(accumulated / np.float32(len(rows)) - expected) / np.abs(expected)
    assert errors.max() > 1e-6


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


@pytest.mark.parametrize("num_terms", [1, 2, 3, 1023, 1024, 1025])
def test_lanes_hold_equal_largest_terms(num_terms: int) -> None:
    largest = np.full((num_terms, 1), np.finfo(np.float32).max, dtype=np.float64)
    exact = Fraction(float(largest[0, 0])) * num_terms
    assert order_free_sum(largest).tolist() == [float(exact)]


def test_zero_sums_are_positive_zero() -> None:
    assert same_bits(order_free_sum(np.full((3, 2), -0.0)), np.zeros(2))


def test_too_many_terms_are_refused() -> None:
    with pytest.raises(AggregationError, match="must be at most"):
        order_free_sum(np.zeros((MAX_TERMS + 1, 1)))


def test_fractional_weights_do_not_break_order_freedom() -> None:
    rows = wide_range_rows(seed=4, num_rows=50)
    weights = np.random.default_rng(4).uniform(0.1, 1.0, 50)
    forward = weighted_mean(as_rows(rows), weights)
    backward = weighted_mean(as_rows(rows[::-1]), weights[::-1].copy())
    assert same_bits(forward, backward)


@pytest.mark.parametrize(
    "weights",
    [[1.0], [1.0, np.nan], [1.0, np.inf], [1.0, -1.0], [0.0, 0.0], [1.0, 2.0**54], [1.0, 1e-300]],
)
def test_bad_weights_are_refused(weights: list[float]) -> None:
    rows = as_rows(np.ones((2, 3), dtype=np.float32))
    with pytest.raises(AggregationError, match="weights"):
        weighted_mean(rows, np.array(weights))
