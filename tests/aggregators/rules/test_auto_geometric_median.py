import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregators.errors import AggregationError
from aggregators.rows.dense_rows import as_rows
from aggregators.rules.auto_geometric_median import (
    auto_geometric_median,
    auto_geometric_median_weights,
)
from aggregators.rules.geometric_median import geometric_median
from tests.aggregators.matrices import ATTACKS, Matrix, attack, honest_rows, matrices
from tests.looped import looped

Floats = NDArray[np.float64]


def weighted_median(rows: Floats, weights: Floats, point: Floats) -> Floats:
    """Weiszfeld on the rows themselves."""
    for _ in range(2000):
        pulls = weights / np.maximum(np.linalg.norm(rows - point, axis=1), 1e-12)
        moved = pulls @ rows / pulls.sum()
        if np.linalg.norm(moved - point) < 1e-13:
            break
        point = moved
    return point


def level_by_bisection(distances: Floats, regularization: float) -> float:
    low, high = float(distances.min()), float(distances.max()) + regularization
    for _ in range(100):
        level = 0.5 * (low + high)
        if np.maximum(level - distances, 0.0).sum() > regularization:
            high = level
        else:
            low = level
    return low


def brute_force(rows: Matrix, factor: float) -> tuple[Floats, Floats]:
    """Li et al. (2022), Algorithm 1, with lambda = factor n times the first median distance."""
    wide = rows.astype(np.float64)
    count = len(wide)
    point = weighted_median(wide, np.full(count, 1 / count), np.median(wide, axis=0))
    distances = np.linalg.norm(wide - point, axis=1)
    regularization = factor * count * float(np.median(distances))
    alphas = np.full(count, 1 / count)
    for _ in range(60):
        level = level_by_bisection(distances, regularization)
        alphas = np.maximum(level - distances, 0.0) / regularization
        point = weighted_median(wide, alphas, point)
        distances = np.linalg.norm(wide - point, axis=1)
    return point, alphas


@looped("factor", [0.1, 1.0, 3.0])
@looped("seed", range(3))
def test_agrees_with_brute_force(seed: int, factor: float) -> None:
    rows = honest_rows(seed, num_rows=9, dim=15)
    rows[:2] += np.float32(0.5)
    found = auto_geometric_median(rows, regularization=factor, tolerance=1e-13)
    point, alphas = brute_force(rows, factor)
    np.testing.assert_allclose(found.vector, point, atol=1e-5)
    assert found.selected.tolist() == (alphas > 1e-9).tolist()


def test_scores_are_the_distances() -> None:
    rows = honest_rows(seed=1, num_rows=6, dim=5)
    found = auto_geometric_median(rows)
    assert found.scores is not None
    wide = rows.astype(np.float64)
    expected = np.linalg.norm(wide - found.weights @ wide, axis=1)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-9)


def test_grown_regularization_is_the_geometric_median() -> None:
    rows = np.vstack([honest_rows(seed=2, num_rows=6, dim=5), np.full((1, 5), 4.0)])
    rows = rows.astype(np.float32)
    found = auto_geometric_median(rows, regularization=1e9)
    np.testing.assert_allclose(found.vector, geometric_median(rows).vector, rtol=1e-5)


@given(matrices(), st.data())
def test_row_order_leaves_every_bit(rows: Matrix, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    found = auto_geometric_median(rows, max_turns=5)
    shuffled = auto_geometric_median(rows[order], max_turns=5)
    assert shuffled.vector.tobytes() == found.vector.tobytes()
    assert shuffled.weights.tobytes() == found.weights[order].tobytes()


@given(matrices())
def test_lies_within_the_convex_hull_of_the_selected(rows: Matrix) -> None:
    found = auto_geometric_median(rows, max_turns=20)
    assert np.isfinite(found.vector).all()
    assert (found.weights >= 0.0).all()
    assert ((found.weights > 0.0) == found.selected).all()
    assert found.weights.sum() == pytest.approx(1.0)
    expected = found.weights @ rows.astype(np.float64)
    scale = float(np.abs(rows).max())
    np.testing.assert_allclose(found.vector, expected, rtol=1e-6, atol=1e-12 * scale + 3e-45)


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.3, 3e38])
def test_equal_rows_give_that_row(value: float) -> None:
    rows = np.full((5, 3), value, dtype=np.float32)
    found = auto_geometric_median(rows)
    assert found.vector.tolist() == rows[0].tolist()
    np.testing.assert_allclose(found.weights, 0.2)


def test_a_majority_of_equal_rows_decides_and_is_selected() -> None:
    rows = np.array([[1.0], [1.0], [1.0], [9.0], [1e30]], dtype=np.float32)
    found = auto_geometric_median(rows)
    assert found.vector.tolist() == [1.0]
    assert found.selected.tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("factor", [2.0**-90, 2.0**90])
def test_scaling_scales_the_result(factor: float) -> None:
    rows = honest_rows(seed=4, num_rows=7, dim=9)
    found = auto_geometric_median((rows * factor).astype(np.float32), regularization=0.3)
    expected = auto_geometric_median(rows, regularization=0.3)
    np.testing.assert_allclose(found.vector / factor, expected.vector, rtol=1e-6)
    assert found.selected.tolist() == expected.selected.tolist()


def test_translation_moves_the_result() -> None:
    rows = (np.random.default_rng(5).integers(-64, 64, (7, 9)) / 64).astype(np.float32)
    moved = auto_geometric_median(rows + np.float32(1024))
    expected = auto_geometric_median(rows).vector + 1024.0
    np.testing.assert_allclose(moved.vector, expected, rtol=3e-7)


@looped("name", ATTACKS)
def test_less_than_half_stay_within_a_bound_set_by_the_others(name: str) -> None:
    honest = honest_rows(seed=6, num_rows=5, dim=50)
    found = auto_geometric_median(np.vstack([attack(name, honest, 4), honest]))
    center = honest.astype(np.float64).mean(axis=0)
    spread = float(np.linalg.norm(honest - center, axis=1).max())
    assert np.linalg.norm(found.vector - center) <= 10 * spread


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "zeros"])
def test_far_rows_are_not_selected(name: str) -> None:
    honest = honest_rows(seed=7, num_rows=7, dim=50)
    found = auto_geometric_median(np.vstack([attack(name, honest, 3), honest]))
    assert found.selected.tolist() == [False] * 3 + [True] * 7


def test_more_than_half_move_it_anywhere() -> None:
    honest = honest_rows(seed=8, num_rows=4, dim=5)
    rows = np.vstack([attack("plus_1e30", honest, 5), honest])
    assert (auto_geometric_median(rows).vector > 1e29).all()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("regularization", 0.0),
        ("regularization", float("inf")),
        ("max_turns", -1),
        ("tolerance", -1.0),
        ("smoothing", 0.0),
    ],
)
def test_settings_are_checked(setting: str, value: float) -> None:
    gram = as_rows(honest_rows(seed=0, num_rows=3, dim=2)).gram()
    defaults = {"regularization": 1.0, "max_turns": 5, "tolerance": 0.0, "smoothing": 1e-6}
    chosen = {**defaults, setting: value}
    with pytest.raises(AggregationError, match=f"{setting}=.* of auto-geometric-median"):
        auto_geometric_median_weights(
            gram,
            regularization=chosen["regularization"],
            max_turns=int(chosen["max_turns"]),
            tolerance=chosen["tolerance"],
            smoothing=chosen["smoothing"],
        )
