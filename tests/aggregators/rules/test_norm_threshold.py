from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.errors import AggregationError
from aggregators.rules.mean import mean
from aggregators.rules.norm_threshold import norm_threshold, norm_threshold_weights
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

# The vector is rounded once to float32.
ROUNDING = 2.0**-23


def lengths(rows: Matrix) -> list[float]:
    return [float(np.linalg.norm(row.astype(np.float64))) for row in rows]


@given(st.integers(0, 10_000), st.integers(1, 12), st.floats(1.0, 3.0))
def test_factor_agrees_with_the_definition(seed: int, num_rows: int, factor: float) -> None:
    factors = np.random.default_rng(seed).uniform(0.1, 5.0, (num_rows, 1))
    rows = (honest_rows(seed, num_rows, dim=6) * factors).astype(np.float32)
    norms = lengths(rows)
    kept = [norm <= factor * np.median(norms) * (1 + 1e-12) for norm in norms]
    result = norm_threshold(rows, factor=factor)
    assert result.selected.tolist() == kept
    expected = rows[kept].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(result.vector, expected, rtol=ROUNDING)
    np.testing.assert_allclose(result.weights, np.array(kept) / sum(kept))
    assert result.scores is not None
    np.testing.assert_allclose(result.scores, norms, rtol=1e-12)


def test_fixed_bound_drops_longer_rows_only() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 5.1], [1.0, 0.0]], dtype=np.float32)
    result = norm_threshold(rows, max_norm=5.0)
    assert result.selected.tolist() == [True, False, True]
    assert result.vector.tolist() == [2.0, 2.0]


def test_the_zero_vector_remains_where_all_rows_are_too_long() -> None:
    rows = honest_rows(seed=0, num_rows=3, dim=4)
    result = norm_threshold(rows, max_norm=1e-3)
    assert result.vector.tolist() == [0.0] * 4
    assert result.weights.tolist() == [0.0] * 3
    assert not result.selected.any()


@given(matrices(elements=TIED_FLOAT), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_change_a_bit(rows: Matrix, random: Random) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    first, second = norm_threshold(rows, factor=1.0), norm_threshold(rows[order], factor=1.0)
    assert same_bits(first.vector, second.vector)
    assert first.selected[order].tolist() == second.selected.tolist()


@given(matrices(), st.floats(1.0, 10.0))
def test_rows_up_to_the_median_norm_stay(rows: Matrix, factor: float) -> None:
    norms = np.array(lengths(rows))
    result = norm_threshold(rows, factor=factor)
    assert result.selected[norms <= np.median(norms) * (1 - 1e-12)].all()
    assert result.selected.sum() >= (len(rows) + 1) // 2


@given(matrices(), st.floats(1e-3, 1e3))
def test_result_is_no_longer_than_the_bound(rows: Matrix, max_norm: float) -> None:
    (length,) = lengths(norm_threshold(rows, max_norm=max_norm).vector[np.newaxis])
    assert length <= max_norm * (1 + ROUNDING)


@looped("name", ATTACKS)
def test_a_minority_cannot_move_the_bound_beyond_the_longest_of_the_others(name: str) -> None:
    honest = honest_rows(seed=1, num_rows=6, dim=50)
    rows = np.vstack([honest, attack(name, honest, 5)])
    (length,) = lengths(norm_threshold(rows, factor=1.5).vector[np.newaxis])
    assert length <= 1.5 * max(lengths(honest))


def test_rows_of_ordinary_length_are_kept_whatever_their_direction() -> None:
    honest = honest_rows(seed=1, num_rows=6, dim=50)
    rows = np.vstack([honest, -honest[:1]])
    assert norm_threshold(rows, factor=1.5).selected.all()


@pytest.mark.parametrize("name", ["times_1000", "plus_1e30"])
def test_long_attackers_are_dropped(name: str) -> None:
    honest = honest_rows(seed=1, num_rows=6, dim=50)
    result = norm_threshold(np.vstack([attack(name, honest, 5), honest]), factor=1.5)
    assert result.selected.tolist() == [False] * 5 + [True] * 6
    assert same_bits(result.vector, mean(honest).vector)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_factor_does_not_depend_on_the_scale(scale: float) -> None:
    rows = honest_rows(seed=2, num_rows=9, dim=20)
    rows[2] *= 3
    scaled = (rows.astype(np.float64) * scale).astype(np.float32)
    result = norm_threshold(scaled, factor=1.2)
    assert result.selected.tolist() == norm_threshold(rows, factor=1.2).selected.tolist()
    assert np.isfinite(result.vector).all()


@looped("value", [0.0, -3.5, 1e30, 1e-30])
@looped("num_rows", [1, 4])
def test_equal_rows_give_that_row(value: float, num_rows: int) -> None:
    rows = np.full((num_rows, 3), value, dtype=np.float32)
    result = norm_threshold(rows, factor=1.0)
    np.testing.assert_allclose(result.vector, rows[0], rtol=ROUNDING)
    assert result.selected.all()


@pytest.mark.parametrize("max_norm", [0.0, -1.0, np.inf, np.nan])
def test_bound_is_checked(max_norm: float) -> None:
    with pytest.raises(AggregationError, match=r"max_norm=.* of norm-threshold must be finite"):
        norm_threshold_weights(np.ones(3), max_norm=max_norm)


@pytest.mark.parametrize("factor", [0.99, np.inf, np.nan])
def test_factor_is_checked(factor: float) -> None:
    with pytest.raises(AggregationError, match=r"factor=.* of norm-threshold must be finite"):
        norm_threshold_weights(np.ones(3), factor=factor)


@pytest.mark.parametrize("value", [None, 1.0])
def test_exactly_one_bound_is_given(value: float | None) -> None:
    with pytest.raises(AggregationError, match="exactly one of max_norm="):
        norm_threshold_weights(np.ones(3), max_norm=value, factor=value)
