import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregators.errors import AggregationError
from aggregators.rows.dense_rows import as_rows
from aggregators.rows.rows import Vector
from aggregators.rules.centered_clipping import (
    centered_clipping,
    centered_clipping_weights,
    with_origin,
)
from aggregators.rules.mean import mean
from tests.aggregators.matrices import ATTACKS, Matrix, attack, honest_rows, matrices
from tests.looped import looped

Floats = NDArray[np.float64]


def brute_force(rows: Matrix, center: Floats, radius: float | None, max_steps: int) -> Floats:
    """Karimireddy et al. (2021), Algorithm 2; the radius None is the median distance."""
    point = center.astype(np.float64)
    for _ in range(max_steps):
        differences = rows.astype(np.float64) - point
        lengths = np.linalg.norm(differences, axis=1)
        bound = float(np.median(lengths)) if radius is None else radius
        factors = np.minimum(1.0, bound / lengths)
        point = point + (differences * factors[:, np.newaxis]).mean(axis=0)
    return point


@looped("radius", [None, 0.5, 2.0])
@looped("max_steps", [1, 2, 10])
@looped("centered", [False, True])
def test_agrees_with_brute_force(radius: float | None, max_steps: int, centered: bool) -> None:
    rows = honest_rows(seed=1, num_rows=8, dim=20)
    rows[0] *= 100
    start = honest_rows(seed=2, num_rows=1, dim=20)[0] if centered else None
    found = centered_clipping(rows, center=start, radius=radius, max_steps=max_steps)
    center = np.zeros(20) if start is None else start.astype(np.float64)
    expected = brute_force(rows, center, radius, max_steps)
    np.testing.assert_allclose(found.vector, expected, rtol=1e-6)
    rest = 1.0 - found.weights.sum()
    combined = found.weights @ rows.astype(np.float64) + rest * center
    np.testing.assert_allclose(combined, expected, rtol=1e-6)


def test_scores_are_distances_to_the_centre_before_the_last_step() -> None:
    rows = honest_rows(seed=3, num_rows=6, dim=5)
    found = centered_clipping(rows, max_steps=3)
    before = brute_force(rows, np.zeros(5), None, 2)
    assert found.scores is not None
    np.testing.assert_allclose(found.scores, np.linalg.norm(rows - before, axis=1), rtol=1e-6)


@given(matrices(), st.booleans(), st.data())
def test_row_order_leaves_every_bit(rows: Matrix, centered: bool, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    center = rows.min(axis=0) if centered else None
    found = centered_clipping(rows, center=center, max_steps=3)
    shuffled = centered_clipping(rows[order], center=center, max_steps=3)
    assert shuffled.vector.tobytes() == found.vector.tobytes()
    assert shuffled.weights.tobytes() == found.weights[order].tobytes()


@given(matrices(), st.booleans(), st.integers(1, 4))
def test_lies_within_the_hull_of_rows_and_center(
    rows: Matrix, centered: bool, max_steps: int
) -> None:
    center = rows.min(axis=0) if centered else np.zeros(rows.shape[1], dtype=np.float32)
    found = centered_clipping(rows, center=center if centered else None, max_steps=max_steps)
    assert np.isfinite(found.vector).all()
    assert (found.weights >= 0.0).all()
    rest = 1.0 - found.weights.sum()
    assert rest >= -1e-12
    expected = found.weights @ rows.astype(np.float64) + rest * center.astype(np.float64)
    scale = float(np.abs(rows).max())
    np.testing.assert_allclose(found.vector, expected, rtol=1e-6, atol=1e-12 * scale + 3e-45)


@looped("name", ATTACKS)
def test_one_step_moves_by_at_most_the_radius(name: str) -> None:
    honest = honest_rows(seed=4, num_rows=2, dim=9)
    rows = np.vstack([attack(name, honest, 8), honest])
    found = centered_clipping(rows, center=honest[0], radius=0.25)
    moved = float(np.linalg.norm(found.vector.astype(np.float64) - honest[0]))
    assert moved <= 0.25 * (1 + 1e-5)


def test_a_radius_beyond_every_row_is_the_mean() -> None:
    rows = honest_rows(seed=5, num_rows=6, dim=9)
    found = centered_clipping(rows, radius=1e30)
    np.testing.assert_allclose(found.vector, mean(rows).vector, rtol=1e-6)
    np.testing.assert_allclose(found.weights, 1 / 6)


@looped("name", ATTACKS)
@looped("max_steps", [1, 3, 10])
def test_less_than_half_stay_within_a_bound_set_by_the_others(name: str, max_steps: int) -> None:
    honest = honest_rows(seed=6, num_rows=6, dim=50)
    center = honest[0] + np.float32(0.1)
    rows = np.vstack([attack(name, honest, 4), honest])
    found = centered_clipping(rows, center=center, max_steps=max_steps)
    reach = float(np.linalg.norm(honest - center, axis=1).max())
    assert np.linalg.norm(found.vector - center) <= 3 * reach


def test_half_of_the_rows_move_it_anywhere() -> None:
    honest = honest_rows(seed=7, num_rows=4, dim=5)
    rows = np.vstack([attack("plus_1e30", honest, 5), honest])
    assert (centered_clipping(rows).vector > 1e29).all()


def test_rows_at_the_center_keep_it() -> None:
    center = np.array([1.0, 2.0], dtype=np.float32)
    rows = np.vstack([center, center, center, center + 5]).astype(np.float32)
    found = centered_clipping(rows, center=center)
    assert found.vector.tolist() == center.tolist()
    assert not found.selected[3]


def test_rows_of_zeros_give_zeros() -> None:
    assert centered_clipping(np.zeros((3, 2), np.float32)).vector.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("factor", [2.0**-90, 2.0**90])
def test_scaling_scales_the_result(factor: float) -> None:
    rows = honest_rows(seed=8, num_rows=7, dim=9)
    found = centered_clipping((rows * factor).astype(np.float32), max_steps=3)
    expected = centered_clipping(rows, max_steps=3).vector
    np.testing.assert_allclose(found.vector / factor, expected, rtol=1e-6)


def test_without_a_center_it_starts_from_zeros() -> None:
    rows = honest_rows(seed=9, num_rows=5, dim=4)
    implied = centered_clipping(rows, max_steps=2)
    given_zeros = centered_clipping(rows, center=np.zeros(4, np.float32), max_steps=2)
    assert implied.vector.tobytes() == given_zeros.vector.tobytes()


def test_the_origin_is_appended_to_a_gram_matrix() -> None:
    rows = honest_rows(seed=10, num_rows=3, dim=4)
    found = with_origin(as_rows(rows).gram())
    expected = as_rows(np.vstack([rows, np.zeros((1, 4), np.float32)])).gram()
    np.testing.assert_allclose(found.inner, expected.inner, rtol=1e-12)
    np.testing.assert_allclose(found.squared_distances, expected.squared_distances, rtol=1e-12)


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan"), float("inf")])
def test_the_radius_is_checked(radius: float) -> None:
    with pytest.raises(AggregationError, match=r"radius=.* of centered-clipping"):
        centered_clipping(np.ones((2, 2), np.float32), radius=radius)


def test_the_number_of_steps_is_checked() -> None:
    with pytest.raises(AggregationError, match="max_steps=0 of centered-clipping"):
        centered_clipping(np.ones((2, 2), np.float32), max_steps=0)


def test_the_center_alone_is_refused() -> None:
    with pytest.raises(AggregationError, match="at least one row"):
        centered_clipping_weights(as_rows(np.ones((1, 2), np.float32)).gram())


@pytest.mark.parametrize(
    "center", [np.ones(3, np.float32), np.full(2, np.inf, np.float32), np.ones(2)]
)
def test_the_center_must_match_the_rows(center: Vector) -> None:
    with pytest.raises(AggregationError, match="center of centered-clipping"):
        centered_clipping(np.ones((2, 2), np.float32), center=center)
