"""Every registered rule passes the same suite."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.registry import RULES, make_rule
from aggregators.rows import as_rows
from aggregators.rule import RuleResult
from tests.aggregators.matrices import (
    ATTACKS,
    TIED_FLOAT,
    Matrix,
    attack,
    honest_rows,
    matrices,
    same_bits,
)

every_rule = pytest.mark.parametrize("rule", sorted(RULES))


def apply(rule: str, rows: Matrix, *, num_byzantine: int = 1) -> RuleResult:
    config = AggregatorConfig(rule=rule, num_malicious_nodes=num_byzantine)
    return make_rule(config)(as_rows(rows), np.ones(len(rows)))


def integer_rows(seed: int, num_rows: int = 9) -> Matrix:
    generator = np.random.default_rng(seed)
    return generator.integers(-1000, 1000, (num_rows, 20)).astype(np.float32)


def assert_permuted(first: RuleResult, second: RuleResult, order: list[int]) -> None:
    """Check that `second` is the result for the rows of `first` taken in `order`."""
    assert same_bits(first.vector, second.vector)
    if first.scores is None:
        assert second.scores is None
    else:
        assert second.scores is not None
        assert same_bits(first.scores[order], second.scores)


@every_rule
@given(rows=matrices(min_rows=5), random=st.randoms(use_true_random=False))
def test_any_finite_rows_in_any_order_give_the_same_bits(
    rule: str, rows: Matrix, random: Random
) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    first, second = apply(rule, rows), apply(rule, rows[order])
    assert np.isfinite(first.vector).all()
    assert_permuted(first, second, order)


@every_rule
@given(rows=matrices(min_rows=5, elements=TIED_FLOAT), random=st.randoms(use_true_random=False))
def test_ties_and_zeros_of_both_signs_do_not_depend_on_the_order(
    rule: str, rows: Matrix, random: Random
) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    assert_permuted(apply(rule, rows), apply(rule, rows[order]), order)


@every_rule
def test_large_rows_do_not_depend_on_the_order(rule: str) -> None:
    # Large enough for several blocks and for the edge cases of matrix kernels.
    rows = honest_rows(seed=1, num_rows=37, dim=9001)
    order = np.random.default_rng(1).permutation(37).tolist()
    first, second = apply(rule, rows), apply(rule, rows[order])
    assert_permuted(first, second, order)
    assert np.array_equal(first.selected[order], second.selected)


@every_rule
@given(seed=st.integers(0, 10_000), shift=st.integers(-(10**6), 10**6))
def test_translation_moves_the_result(rule: str, seed: int, shift: int) -> None:
    rows = integer_rows(seed)
    moved = apply(rule, rows + np.float32(shift)).vector
    # Integers below 2**24: translation is exact, only the division of a mean rounds.
    np.testing.assert_allclose(moved - shift, apply(rule, rows).vector, rtol=0, atol=1e-9)


@every_rule
@given(seed=st.integers(0, 10_000), exponent=st.integers(-60, 60))
def test_scaling_scales_the_result(rule: str, seed: int, exponent: int) -> None:
    rows = honest_rows(seed, num_rows=9, dim=20)
    factor = 2.0**exponent
    scaled = apply(rule, rows * np.float32(factor)).vector
    # A power of two scales without rounding.
    assert same_bits(scaled, apply(rule, rows).vector * factor)


@every_rule
def test_permuting_coordinates_permutes_the_result(rule: str) -> None:
    rows = honest_rows(seed=3, num_rows=9, dim=50)
    order = np.random.default_rng(3).permutation(50)
    np.testing.assert_array_equal(
        apply(rule, rows[:, order]).vector, apply(rule, rows).vector[order]
    )


@every_rule
@pytest.mark.parametrize("value", [0.0, -3.0, 1e-30, 3e38])
def test_equal_rows_are_their_own_aggregate(rule: str, value: float) -> None:
    rows = np.full((7, 3), value, dtype=np.float32)
    np.testing.assert_allclose(apply(rule, rows).vector, rows[0].astype(np.float64), rtol=2e-16)


@every_rule
def test_rows_may_be_separate_arrays(rule: str) -> None:
    matrix = honest_rows(seed=4, num_rows=7, dim=30)
    config = AggregatorConfig(rule=rule, num_malicious_nodes=1)
    separate = make_rule(config)(as_rows([row.copy() for row in matrix]), np.ones(7))
    assert same_bits(separate.vector, apply(rule, matrix).vector)


@every_rule
def test_input_is_not_modified(rule: str) -> None:
    rows = honest_rows(seed=5, num_rows=7, dim=30)
    before = rows.tobytes()
    apply(rule, rows)
    assert rows.tobytes() == before


@every_rule
def test_weights_sum_to_one_and_are_zero_where_excluded(rule: str) -> None:
    result = apply(rule, honest_rows(seed=6, num_rows=9, dim=30), num_byzantine=3)
    assert result.vector.dtype == result.weights.dtype == np.float64
    assert result.weights.sum() == pytest.approx(1.0)
    assert np.array_equal(result.weights > 0, result.selected)


@every_rule
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused(rule: str, bad: float) -> None:
    rows = honest_rows(seed=7, num_rows=7, dim=30)
    rows[2, 11] = bad
    with pytest.raises(AggregationError, match="rows must be finite"):
        apply(rule, rows)


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"mean"}))
@pytest.mark.parametrize("name", ["times_1000", "plus_1e30", "minus_1e30", "alternating_1e30"])
def test_robust_rules_stay_bounded(rule: str, name: str) -> None:
    honest = honest_rows(seed=8, num_rows=7, dim=100)
    rows = np.vstack([honest, attack(name, honest, 3)])
    vector = apply(rule, rows, num_byzantine=3).vector
    assert (vector >= honest.min(axis=0) - 1e-15).all()
    assert (vector <= honest.max(axis=0) + 1e-15).all()


@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
def test_four_of_ten_attackers_are_survived_by_coordinate(rule: str) -> None:
    honest = honest_rows(seed=9, num_rows=6, dim=100)
    rows = np.vstack([honest, attack("plus_1e30", honest, 4)])
    vector = apply(rule, rows, num_byzantine=4).vector
    assert (vector <= honest.max(axis=0) + 1e-15).all()


@pytest.mark.parametrize("rule", ["krum", "multi-krum"])
def test_four_of_ten_attackers_are_refused_by_distance(rule: str) -> None:
    honest = honest_rows(seed=9, num_rows=6, dim=100)
    rows = np.vstack([honest, attack("plus_1e30", honest, 4)])
    with pytest.raises(TooFewUpdatesError, match="n=10"):
        apply(rule, rows, num_byzantine=4)


@every_rule
@pytest.mark.parametrize("name", ATTACKS)
def test_one_attacker_more_than_configured_is_no_crash(rule: str, name: str) -> None:
    honest = honest_rows(seed=9, num_rows=6, dim=100)
    rows = np.vstack([honest, attack(name, honest, 4)])
    assert np.isfinite(apply(rule, rows, num_byzantine=3).vector).all()


def test_trim_overrides_the_number_of_malicious_nodes() -> None:
    rows = as_rows(np.array([[0.0], [1.0], [2.0], [3.0], [100.0]], dtype=np.float32))
    weights = np.ones(5)
    by_f = make_rule(AggregatorConfig(rule="trimmed-mean", num_malicious_nodes=1))
    by_trim = make_rule(AggregatorConfig(rule="trimmed-mean", num_malicious_nodes=1, trim=0))
    assert by_f(rows, weights).vector.tolist() == [2.0]
    assert by_trim(rows, weights).vector.tolist() == [21.2]


def test_unknown_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(AggregationError, match="rule='meen' must be one of krum, mean, median"):
        make_rule(AggregatorConfig(rule="meen"))
