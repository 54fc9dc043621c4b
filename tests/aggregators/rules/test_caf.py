import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.rules.caf import caf
from aggregators.rules.mean import mean
from tests.aggregators.matrices import ATTACKS, Matrix, attack, honest_rows, matrices
from tests.looped import looped

Floats = NDArray[np.float64]


def brute_force(rows: Matrix, num_byzantine: int) -> tuple[Floats, Floats]:
    """Allouah et al. (2025), Algorithm 2, with the covariance matrix itself.

    byzfl takes the farthest row among all, also those without weight, and approximates the
    eigenvector by one step of power iteration from a random start: no oracle.
    """
    wide = rows.astype(np.float64)
    weights = np.ones(len(wide))
    best, best_weights, least = wide.mean(axis=0), weights, math.inf
    while weights.sum() > len(wide) - 2 * num_byzantine:
        center = weights @ wide / weights.sum()
        differences = wide - center
        covariance = differences.T @ (weights[:, np.newaxis] * differences) / weights.sum()
        values, vectors = np.linalg.eigh(covariance)
        if values[-1] < least:
            best, best_weights, least = center, weights, float(values[-1])
        deviations = np.square(differences @ vectors[:, -1])
        weights = weights * (1.0 - deviations / deviations[weights > 0.0].max())
        weights = np.maximum(weights, 0.0)
    return best, best_weights


@looped("num_byzantine", [1, 2, 4])
@looped("seed", range(6))
def test_agrees_with_brute_force(seed: int, num_byzantine: int) -> None:
    rows = honest_rows(seed, num_rows=10, dim=12)
    rows[:num_byzantine] += np.float32(0.2 * seed)
    found = caf(rows, num_byzantine=num_byzantine)
    vector, weights = brute_force(rows, num_byzantine)
    np.testing.assert_allclose(found.vector, vector, rtol=1e-5)
    np.testing.assert_allclose(found.weights, weights / weights.sum(), atol=1e-6)
    assert found.scores is not None
    np.testing.assert_allclose(found.scores, 1.0 - weights, atol=1e-6)


def test_without_attackers_it_is_the_mean() -> None:
    rows = honest_rows(seed=1, num_rows=6, dim=5)
    assert caf(rows, num_byzantine=0).vector.tobytes() == mean(rows).vector.tobytes()


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.3, 3e38])
def test_of_equal_rows_it_is_the_mean(value: float) -> None:
    rows = np.full((5, 3), value, dtype=np.float32)
    found = caf(rows, num_byzantine=2)
    assert found.vector.tolist() == rows[0].tolist()
    assert found.selected.all()


@given(matrices(), st.data())
def test_row_order_leaves_every_bit(rows: Matrix, data: st.DataObject) -> None:
    num_byzantine = data.draw(st.integers(0, (len(rows) - 1) // 2))
    order = data.draw(st.permutations(range(len(rows))))
    found = caf(rows, num_byzantine=num_byzantine)
    shuffled = caf(rows[order], num_byzantine=num_byzantine)
    assert shuffled.vector.tobytes() == found.vector.tobytes()


@given(matrices(), st.data())
def test_lies_within_the_convex_hull(rows: Matrix, data: st.DataObject) -> None:
    found = caf(rows, num_byzantine=data.draw(st.integers(0, (len(rows) - 1) // 2)))
    assert np.isfinite(found.vector).all()
    assert (found.weights >= 0.0).all()
    assert found.weights.sum() == pytest.approx(1.0)


@looped("name", ATTACKS)
@looped("num_byzantine", [1, 3, 4])
def test_stays_within_a_bound_set_by_the_others(name: str, num_byzantine: int) -> None:
    honest = honest_rows(seed=2, num_rows=10 - num_byzantine, dim=50)
    rows = np.vstack([attack(name, honest, num_byzantine), honest])
    found = caf(rows, num_byzantine=num_byzantine)
    center = honest.astype(np.float64).mean(axis=0)
    spread = float(np.linalg.norm(honest - center, axis=1).max())
    assert np.linalg.norm(found.vector - center) <= spread


def test_attackers_in_different_directions_do_not_shelter_each_other() -> None:
    rows = honest_rows(seed=3, num_rows=10, dim=50)
    rows[0, 0], rows[1, 1], rows[2, 2] = 1e30, -1e20, 1e10
    assert not caf(rows, num_byzantine=3).selected[:3].any()


def test_more_attackers_than_allowed_for_move_it_anywhere() -> None:
    honest = honest_rows(seed=4, num_rows=4, dim=5)
    rows = np.vstack([attack("plus_1e30", honest, 5), honest])
    assert (caf(rows, num_byzantine=2).vector > 1e28).all()


@pytest.mark.parametrize("factor", [2.0**-90, 2.0**90])
def test_scaling_scales_the_result(factor: float) -> None:
    rows = honest_rows(seed=5, num_rows=9, dim=9)
    found = caf((rows * factor).astype(np.float32), num_byzantine=3)
    expected = caf(rows, num_byzantine=3).vector
    np.testing.assert_allclose(found.vector / factor, expected, rtol=1e-5)


def test_translation_moves_the_result() -> None:
    rows = (np.random.default_rng(6).integers(-64, 64, (9, 9)) / 64).astype(np.float32)
    moved = caf(rows + np.float32(1024), num_byzantine=3)
    expected = caf(rows, num_byzantine=3).vector + 1024.0
    np.testing.assert_allclose(moved.vector, expected, rtol=3e-7)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(TooFewUpdatesError, match=r"of caf .* got n=4"):
        caf(honest_rows(seed=0, num_rows=4, dim=3), num_byzantine=2)


def test_negative_f_is_refused() -> None:
    with pytest.raises(AggregationError, match="num_byzantine=-1 of caf"):
        caf(honest_rows(seed=0, num_rows=4, dim=3), num_byzantine=-1)
