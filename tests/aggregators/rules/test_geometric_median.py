import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregators.errors import AggregationError
from aggregators.rows.dense_rows import as_rows
from aggregators.rules.geometric_median import (
    central_start,
    geometric_median,
    geometric_median_weights,
)
from tests.aggregators.matrices import (
    ATTACKS,
    TIED_FLOAT,
    Matrix,
    attack,
    honest_rows,
    matrices,
)
from tests.looped import looped

Floats = NDArray[np.float64]


def objective(rows: Matrix, weights: Floats, point: NDArray[np.float32] | Floats) -> float:
    """The weighted sum of distances."""
    distances = np.linalg.norm(rows.astype(np.float64) - point.astype(np.float64), axis=1)
    return float(weights @ distances)


def plain_weiszfeld(rows: Matrix, weights: Floats) -> Floats:
    """Pillutla et al. (2022), Algorithm 2, on the rows themselves, to the end."""
    wide = rows.astype(np.float64)
    point: Floats = np.median(wide, axis=0)
    floor = 1e-12 * float(np.abs(wide).max())
    for _ in range(3000):
        pulls = weights / np.maximum(np.linalg.norm(wide - point, axis=1), floor)
        point = pulls @ wide / pulls.sum()
    return point


@looped("weighted", [False, True])
@looped("seed", range(8))
def test_the_sum_of_distances_is_the_least(seed: int, weighted: bool) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((3 + seed, 1 + 2 * seed)).astype(np.float32)
    weights = generator.uniform(0.5, 2.0, len(rows)) if weighted else np.ones(len(rows))
    found = geometric_median(rows, weights=weights)
    least = objective(rows, weights, plain_weiszfeld(rows, weights))
    # 1e-6 for the rounding of the vector to float32.
    assert objective(rows, weights, found.vector) <= least * (1 + 4 * (1e-8 + 1e-6) + 1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_weiszfeld_on_the_rows(seed: int) -> None:
    rows = honest_rows(seed, num_rows=9, dim=12)
    found = geometric_median(rows, tolerance=1e-12, max_steps=1000)
    np.testing.assert_allclose(found.vector, plain_weiszfeld(rows, np.ones(9)), rtol=1e-5)
    assert found.scores is not None
    wide = rows.astype(np.float64)
    expected = np.linalg.norm(wide - found.weights @ wide, axis=1)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-9)


def test_of_a_convex_quadrilateral_it_is_where_the_diagonals_cross() -> None:
    rows = np.array([[0, 0], [6, 6], [0, 4], [4, 0]], dtype=np.float32)
    np.testing.assert_allclose(geometric_median(rows).vector, [2, 2], rtol=1e-5)


def test_of_a_wide_triangle_it_is_the_vertex() -> None:
    # The angle at the origin is above 120 degrees.
    rows = np.array([[0, 0], [10, 1], [-10, 1]], dtype=np.float32)
    np.testing.assert_allclose(geometric_median(rows).vector, [0, 0], atol=1e-4)


@pytest.mark.parametrize("far", [3.0, 1e12, 1e30])
def test_rows_that_hold_against_all_others_are_reached(far: float) -> None:
    # The others pull by 1.91 of the 2 votes at (-1, -1): a step goes a twentieth of the way.
    rows = np.array([[0.5, 0], [far, -1], [-1, -1], [-1, -1]], dtype=np.float32)
    found = geometric_median(rows)
    assert found.vector.tolist() == [-1.0, -1.0]
    np.testing.assert_allclose(found.weights, [0, 0, 0.5, 0.5])


def test_of_an_equilateral_triangle_it_is_the_centre() -> None:
    rows = np.array([[1, 0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]], dtype=np.float32)
    np.testing.assert_allclose(geometric_median(rows).vector, [0, 0], atol=1e-6)


def test_on_a_line_it_is_the_median() -> None:
    rows = np.outer([5.0, -1.0, 100.0, 2.0, 3.0], [3.0, 4.0]).astype(np.float32)
    np.testing.assert_allclose(geometric_median(rows).vector, [9, 12], rtol=1e-5)


def test_of_one_row_it_is_that_row() -> None:
    rows = honest_rows(seed=0, num_rows=1, dim=3)
    assert geometric_median(rows).vector.tolist() == rows[0].tolist()


def test_of_two_rows_it_is_the_middle() -> None:
    rows = np.array([[2.0, 0.0], [4.0, 8.0]], dtype=np.float32)
    assert geometric_median(rows).vector.tolist() == [3.0, 4.0]


def test_a_row_with_most_of_the_weight_decides() -> None:
    rows = honest_rows(seed=1, num_rows=4, dim=6)
    found = geometric_median(rows, weights=np.array([1.0, 5.0, 1.0, 1.0]))
    np.testing.assert_allclose(found.vector, rows[1], rtol=1e-5)


def test_a_weight_of_two_is_a_row_that_comes_twice() -> None:
    rows = honest_rows(seed=2, num_rows=5, dim=6)
    twice = geometric_median(np.vstack([rows, rows[:2]]))
    weighted = geometric_median(rows, weights=np.array([2.0, 2.0, 1.0, 1.0, 1.0]))
    np.testing.assert_allclose(weighted.vector, twice.vector, rtol=1e-6)


def test_rows_of_weight_zero_are_left_out() -> None:
    rows = honest_rows(seed=3, num_rows=5, dim=4)
    found = geometric_median(rows, weights=np.array([0.0, 1.0, 1.0, 1.0, 1.0]))
    assert found.selected.tolist() == [False, True, True, True, True]
    assert found.vector.tobytes() == geometric_median(rows[1:]).vector.tobytes()


@given(matrices(), st.data())
def test_row_order_leaves_every_bit(rows: Matrix, data: st.DataObject) -> None:
    count = st.integers(1, 9)
    weights = np.array(data.draw(st.lists(count, min_size=len(rows), max_size=len(rows))), float)
    order = data.draw(st.permutations(range(len(rows))))
    found = geometric_median(rows, weights=weights)
    shuffled = geometric_median(rows[order], weights=weights[order])
    assert shuffled.vector.tobytes() == found.vector.tobytes()
    # Rows equal in value and weight share theirs equally.
    assert shuffled.weights.tobytes() == found.weights[order].tobytes()


@given(matrices())
def test_lies_within_the_convex_hull(rows: Matrix) -> None:
    found = geometric_median(rows)
    assert np.isfinite(found.vector).all()
    assert (found.weights >= 0.0).all()
    assert found.weights.sum() == pytest.approx(1.0)
    expected = found.weights @ rows.astype(np.float64)
    scale = float(np.abs(rows).max())
    np.testing.assert_allclose(found.vector, expected, rtol=1e-6, atol=1e-12 * scale + 3e-45)


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.3, 3e38])
def test_equal_rows_give_that_row(value: float) -> None:
    rows = np.full((5, 3), value, dtype=np.float32)
    found = geometric_median(rows)
    assert found.vector.tolist() == rows[0].tolist()
    np.testing.assert_allclose(found.weights, 0.2)


def test_a_majority_of_equal_rows_decides() -> None:
    rows = np.array([[1.0], [1.0], [1.0], [9.0], [1e30]], dtype=np.float32)
    assert geometric_median(rows).vector.tolist() == [1.0]


@pytest.mark.parametrize("factor", [2.0**-90, 2.0**90])
def test_scaling_scales_the_result(factor: float) -> None:
    rows = honest_rows(seed=4, num_rows=7, dim=9)
    found = geometric_median((rows * factor).astype(np.float32))
    np.testing.assert_allclose(found.vector / factor, geometric_median(rows).vector, rtol=1e-6)


def test_translation_moves_the_result() -> None:
    rows = (np.random.default_rng(5).integers(-64, 64, (7, 9)) / 64).astype(np.float32)
    moved = geometric_median(rows + np.float32(1024))
    expected = geometric_median(rows).vector + 1024.0
    np.testing.assert_allclose(moved.vector, expected, rtol=2e-7)


@looped("name", ATTACKS)
@looped("max_steps", [3, 100])
def test_less_than_half_stay_within_a_bound_set_by_the_others(name: str, max_steps: int) -> None:
    honest = honest_rows(seed=6, num_rows=5, dim=50)
    rows = np.vstack([attack(name, honest, 4), honest])
    found = geometric_median(rows, max_steps=max_steps)
    center = honest.astype(np.float64).mean(axis=0)
    spread = float(np.linalg.norm(honest - center, axis=1).max())
    # 2 (n - f) / (n - 2 f) times the spread: any farther point has a larger sum of distances.
    assert np.linalg.norm(found.vector - center) <= 10 * spread


def test_more_than_half_move_it_anywhere() -> None:
    honest = honest_rows(seed=7, num_rows=4, dim=5)
    rows = np.vstack([attack("plus_1e30", honest, 5), honest])
    assert (geometric_median(rows).vector > 1e29).all()


def test_three_steps_come_close() -> None:
    honest = honest_rows(seed=8, num_rows=7, dim=50)
    rows = np.vstack([attack("times_1000", honest, 3), honest])
    end = geometric_median(rows).vector
    assert np.linalg.norm(geometric_median(rows, max_steps=3).vector - end) < 0.02


def test_the_start_leaves_out_far_rows() -> None:
    honest = honest_rows(seed=9, num_rows=5, dim=5)
    gram = as_rows(np.vstack([honest, attack("plus_1e30", honest, 4)])).gram()
    weights, radius = central_start(gram, np.full(9, 1 / 9))
    assert (weights[:5] > 0.0).all()
    assert (weights[5:] == 0.0).all()
    assert radius == pytest.approx(np.sqrt(gram.squared_distances[:5, :5]).max(), rel=0.5)


def test_weights_alone_follow_from_the_gram_matrix() -> None:
    rows = honest_rows(seed=10, num_rows=6, dim=8)
    gram = as_rows(rows).gram()
    found = geometric_median_weights(gram, weights=np.ones(6))
    expected = geometric_median(rows).weights
    np.testing.assert_allclose(found.weights / found.total, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_steps", -1),
        ("tolerance", -1e-9),
        ("tolerance", float("nan")),
        ("smoothing", 0.0),
        ("smoothing", float("inf")),
    ],
)
def test_settings_are_checked(setting: str, value: float) -> None:
    gram = as_rows(honest_rows(seed=0, num_rows=3, dim=2)).gram()
    chosen = {"max_steps": 3, "tolerance": 1e-8, "smoothing": 1e-6, setting: value}
    with pytest.raises(AggregationError, match=f"{setting}=.* of geometric-median"):
        geometric_median_weights(
            gram,
            weights=np.ones(3),
            max_steps=int(chosen["max_steps"]),
            tolerance=chosen["tolerance"],
            smoothing=chosen["smoothing"],
        )


def test_weights_must_match_the_rows() -> None:
    with pytest.raises(AggregationError, match="one number per row"):
        geometric_median(honest_rows(seed=0, num_rows=3, dim=2), weights=np.ones(4))


@given(matrices(elements=TIED_FLOAT))
def test_ties_and_coincident_rows_are_sane(rows: Matrix) -> None:
    votes = np.ones(len(rows))
    found = objective(rows, votes, geometric_median(rows).vector)
    assert found <= min(objective(rows, votes, row) for row in rows) * (1 + 1e-4)
