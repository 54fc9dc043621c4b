import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from aggregators.errors import AggregationError
from aggregators.rules.water_filling import water_filling

Floats = NDArray[np.float64]

DISTANCES = hnp.arrays(np.float64, st.integers(1, 20), elements=st.floats(0.0, 1e6))


def by_bisection(distances: Floats, lambda_abs: float) -> Floats:
    """Pour until the water adds up to lambda."""
    low, high = float(distances.min()), float(distances.max()) + lambda_abs
    for _ in range(200):
        level = 0.5 * (low + high)
        if np.maximum(level - distances, 0.0).sum() > lambda_abs:
            high = level
        else:
            low = level
    weights: Floats = np.maximum(low - distances, 0.0) / lambda_abs
    return weights


@given(st.integers(0, 10_000), st.integers(1, 30), st.sampled_from([0.01, 0.3, 1.0, 30.0]))
def test_agrees_with_bisection(seed: int, count: int, lambda_abs: float) -> None:
    distances = np.random.default_rng(seed).exponential(size=count)
    np.testing.assert_allclose(
        water_filling(distances, lambda_abs), by_bisection(distances, lambda_abs), atol=1e-12
    )


@given(DISTANCES, st.floats(0.0, 1e9))
def test_weights_are_shares_that_fall_with_distance(distances: Floats, lambda_abs: float) -> None:
    weights = water_filling(distances, lambda_abs)
    assert (weights >= 0.0).all()
    assert weights.sum() == pytest.approx(1.0)
    order = np.argsort(distances)
    assert (np.diff(weights[order]) <= 0.0).all()
    assert (np.diff(weights[order])[np.diff(distances[order]) == 0.0] == 0.0).all()


def test_hand_computed_level() -> None:
    # Level (1 + 2 + 3) / 2 = 3 does not rise above the third distance: two rows share.
    assert water_filling(np.array([9.0, 2.0, 1.0]), 3.0).tolist() == [0.0, 1 / 3, 2 / 3]


@pytest.mark.parametrize("factor", [2.0**-60, 2.0**60])
def test_scale_and_offset_leave_the_weights(factor: float) -> None:
    distances = np.random.default_rng(1).integers(0, 64, 12) / 8.0
    weights = water_filling(distances, 5.0)
    assert water_filling(distances + 1024.0, 5.0).tolist() == weights.tolist()
    assert water_filling(distances * factor, 5.0 * factor).tolist() == weights.tolist()


def test_equal_distances_have_equal_weights() -> None:
    assert water_filling(np.full(4, 1e30), 1e-30).tolist() == [0.25] * 4


def test_without_regularization_the_least_share() -> None:
    assert water_filling(np.array([2.0, 1.0, 1.0]), 0.0).tolist() == [0.0, 0.5, 0.5]


def test_tiny_regularization_beside_large_distances_loses_no_digits() -> None:
    weights = water_filling(np.array([1.0, 1.0, 2.0]) * 1e30, 1.0)
    assert weights.tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("lambda_abs", [-1.0, float("inf"), float("nan")])
def test_lambda_is_checked(lambda_abs: float) -> None:
    with pytest.raises(AggregationError, match="lambda_abs="):
        water_filling(np.ones(2), lambda_abs)


@pytest.mark.parametrize(
    "distances", [np.ones(0), np.ones((1, 1)), np.array([np.nan]), np.array([np.inf])]
)
def test_distances_are_checked(distances: Floats) -> None:
    with pytest.raises(AggregationError, match="distances="):
        water_filling(distances, 1.0)
