import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.cluster import MeanShift, estimate_bandwidth

from aggregators.errors import AggregationError
from aggregators.registry import RULES
from aggregators.rules.sign_guard import (
    mean_shift,
    neighbour_bandwidth,
    sign_fractions,
    sign_guard,
)
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

Floats = NDArray[np.float64]


def random_shares(seed: int, num_points: int) -> Floats:
    """Shares of signs around a few centres."""
    generator = np.random.default_rng(seed)
    centers = generator.dirichlet(np.ones(3), size=3)
    strength = 10.0 ** generator.uniform(1.0, 4.0)
    return np.array(
        [
            generator.dirichlet(1e-3 + strength * centers[generator.integers(3)])
            for _ in range(num_points)
        ]
    )


def update_rows(seed: int, num_rows: int, dim: int = 200) -> Matrix:
    """Rows that share a direction and differ by noise of its size, with exact zeros."""
    generator = np.random.default_rng(seed)
    shared = generator.standard_normal(dim) + 0.3
    rows = shared + generator.standard_normal((num_rows, dim))
    rows[:, : dim // 10] = 0.0
    return rows.astype(np.float32)


def brute_force_mean_shift(points: Floats, bandwidth: float) -> list[int]:
    """Move every point to the mean of the points around it, one by one; join modes; label."""
    found = []
    for start in points:
        mode = start
        while True:
            near = [point for point in points if np.linalg.norm(point - mode) <= bandwidth]
            moved = np.mean(near, axis=0)
            step, mode = float(np.linalg.norm(moved - mode)), moved
            if step <= 1e-3 * bandwidth:
                break
        found.append((len(near), tuple(mode.tolist())))
    modes: list[Floats] = []
    for _, place in sorted(found, reverse=True):
        if all(np.linalg.norm(np.array(place) - mode) > bandwidth for mode in modes):
            modes.append(np.array(place))
    return [int(np.argmin([np.linalg.norm(point - mode) for mode in modes])) for point in points]


@given(st.integers(0, 10_000), st.integers(4, 14))
def test_clusters_agree_with_brute_force(seed: int, num_points: int) -> None:
    points = random_shares(seed, num_points)
    bandwidth = neighbour_bandwidth(points)
    assert mean_shift(points, bandwidth)[0].tolist() == brute_force_mean_shift(points, bandwidth)


@pytest.mark.parametrize("seed", range(8))
def test_clusters_agree_with_scikit_learn(seed: int) -> None:
    num_points = 4 + 5 * seed
    points = random_shares(seed, num_points)
    bandwidth = neighbour_bandwidth(points)
    assert bandwidth == pytest.approx(estimate_bandwidth(points, quantile=0.5), rel=1e-9)
    labels, modes = mean_shift(points, bandwidth)
    theirs = MeanShift(bandwidth=bandwidth).fit(points)
    assert labels.tolist() == theirs.labels_.tolist()
    np.testing.assert_allclose(modes, theirs.cluster_centers_, atol=1e-9)


# With fewer than four points scikit-learn's nearest half is the point itself, the bandwidth is 0
# and each point is a cluster; here the half is two points.
@pytest.mark.parametrize("num_points", [1, 2, 3])
def test_few_points_are_one_cluster_unless_one_is_far(num_points: int) -> None:
    points = random_shares(1, 1) + 1e-3 * np.eye(3)[:num_points]
    assert mean_shift(points, neighbour_bandwidth(points))[0].tolist() == [0] * num_points
    if num_points == 3:
        points[2] += 0.5
        labels, _ = mean_shift(points, 2e-3)
        assert labels.tolist() == [0, 0, 1]


def brute_force_sign_guard(rows: Matrix) -> tuple[Floats, list[bool]]:
    """Xu et al. (2022), Algorithm 2, over all coordinates, clustered by scikit-learn."""
    wide = rows.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1)
    median = float(np.median(norms))
    usual = (norms >= 0.1 * median) & (norms <= 3.0 * median)
    shares = np.array([[np.mean(row > 0), np.mean(row == 0), np.mean(row < 0)] for row in wide])
    points = shares[usual]
    labels = MeanShift(bandwidth=estimate_bandwidth(points, quantile=0.5)).fit(points).labels_
    kept = usual.copy()
    kept[usual] = labels == np.argmax(np.bincount(labels))
    clipped = [row * min(1.0, median / norm) for row, norm in zip(wide, norms, strict=True)]
    return np.mean(np.array(clipped)[kept], axis=0), kept.tolist()


# Of few coordinates the shares lie on a coarse grid, where distances often equal the bandwidth.
@looped("flipped", [0, 3])
@looped("seed", range(4))
def test_agrees_with_brute_force(flipped: int, seed: int) -> None:
    rows = update_rows(seed, num_rows=8 + 2 * seed, dim=4000)
    rows[:flipped] *= -1.0
    rows[flipped : flipped + 2] *= np.float32(50.0)
    result = sign_guard(rows, seed=0)
    expected, kept = brute_force_sign_guard(rows)
    assert result.selected.tolist() == kept
    assert not result.selected[flipped : flipped + 2].any()
    # The average is rounded to float32.
    np.testing.assert_allclose(result.vector, expected, rtol=1e-5, atol=1e-6)


def test_rows_of_usual_norm_with_flipped_signs_are_dropped() -> None:
    rows = update_rows(2, 10)
    rows[:3] *= -1.0
    result = sign_guard(rows, seed=0)
    assert not result.selected[:3].any()
    assert result.selected[3:].sum() >= 5
    assert result.scores is not None
    assert result.scores[:3].min() > result.scores[result.selected].max()


@given(st.integers(0, 10_000))
def test_clustering_all_rows_and_intersecting_differs_only_if_norms_are_unusual(seed: int) -> None:
    rows = update_rows(seed, 9)
    rows[:2] *= -1.0
    shares = sign_fractions(rows, seed=0)
    labels, _ = mean_shift(shares, neighbour_bandwidth(shares))
    kept = labels == np.argmax(np.bincount(labels))
    assert sign_guard(rows, seed=0).selected.tolist() == kept.tolist()


@given(matrices(elements=TIED_FLOAT), st.data())
def test_invariant_to_row_order_bit_for_bit(rows: Matrix, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    first, second = sign_guard(rows, seed=1), sign_guard(rows[order], seed=1)
    assert first.vector.tobytes() == second.vector.tobytes()
    assert same_bits(first.weights[order], second.weights)
    assert first.scores is not None
    assert second.scores is not None
    assert same_bits(first.scores[order], second.scores)


@pytest.mark.parametrize("factor", [1e-30, 0.125, 1e30])
def test_scaling_all_rows_scales_the_result(factor: float) -> None:
    rows = update_rows(3, 9)
    rows[:2] *= -20.0
    scaled = sign_guard((rows * factor).astype(np.float32), seed=0)
    expected = sign_guard(rows, seed=0)
    assert scaled.selected.tolist() == expected.selected.tolist()
    # Both inputs and results are rounded to float32.
    np.testing.assert_allclose(scaled.vector / factor, expected.vector, rtol=1e-5, atol=1e-6)


@looped("name", ATTACKS)
@looped("num_rows", [3, 10, 11])
def test_norm_of_the_result_is_bounded_by_the_median_norm(name: str, num_rows: int) -> None:
    count = RULES["sign-guard"].breakdown(num_rows, 0)
    honest = honest_rows(4, num_rows - count, dim=20)
    rows = np.vstack([attack(name, honest, count), honest])
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    vector = sign_guard(rows, seed=0).vector.astype(np.float64)
    assert np.linalg.norm(vector) <= np.median(norms) * (1 + 1e-6)
    assert np.median(norms) <= norms[count:].max()


@given(matrices())
def test_keeps_at_least_one_row(rows: Matrix) -> None:
    result = sign_guard(rows, seed=0)
    assert result.selected.any()
    assert np.isfinite(result.vector).all()
    assert result.scores is not None
    assert np.isfinite(result.scores).all()


@pytest.mark.parametrize("num_rows", [1, 2, 3, 8])
def test_keeps_every_row_if_all_are_equal(num_rows: int) -> None:
    rows = np.repeat(honest_rows(5, 1, dim=3), num_rows, axis=0)
    result = sign_guard(rows, seed=0)
    assert result.selected.all()
    assert result.vector.tolist() == rows[0].tolist()
    zeros = sign_guard(np.zeros_like(rows), seed=0)
    assert zeros.selected.all()
    assert zeros.vector.tolist() == [0.0, 0.0, 0.0]


def test_with_a_median_norm_of_zero_only_zero_rows_are_kept() -> None:
    rows = np.zeros((5, 3), dtype=np.float32)
    rows[0] = 7.0
    result = sign_guard(rows, seed=0)
    assert result.selected.tolist() == [False, True, True, True, True]
    assert result.vector.tolist() == [0.0, 0.0, 0.0]


@given(matrices(elements=TIED_FLOAT), st.integers(0, 100))
def test_up_to_4096_coordinates_are_all_counted(rows: Matrix, seed: int) -> None:
    shares = sign_fractions(rows, sample_fraction=0.01, seed=seed)
    for row, found in zip(rows, shares, strict=True):
        counts = [sum(row > 0), sum(row == 0), sum(row < 0)]
        np.testing.assert_allclose(found, np.array(counts) / len(row), rtol=1e-12)


def test_samples_follow_the_seed_and_are_near_the_whole() -> None:
    generator = np.random.default_rng(6)
    rows = (generator.standard_normal((3, 200_000)) + 0.2).astype(np.float32)
    rows[:, ::3] = 0.0
    whole = sign_fractions(rows, sample_fraction=1.0, seed=0)
    np.testing.assert_allclose(whole[:, 1], np.mean(rows == 0, axis=1), rtol=1e-12)
    np.testing.assert_allclose(whole.sum(axis=1), 1.0, rtol=1e-12)
    first, again, other = (sign_fractions(rows, seed=seed) for seed in (1, 1, 2))
    assert same_bits(first, again)
    assert not same_bits(first, other)
    # 20 000 coordinates: three standard deviations of a share near 1/2 are 0.011.
    np.testing.assert_allclose(first, whole, atol=0.011)
    assert same_bits(sign_fractions(rows[::-1], seed=1), first[::-1].copy())


def test_arguments_out_of_range_are_refused() -> None:
    rows = honest_rows(0, 4, dim=3)
    for fraction in (0.0, 1.1, float("nan")):
        with pytest.raises(AggregationError, match=f"sample_fraction={fraction}"):
            sign_guard(rows, sample_fraction=fraction, seed=0)
    with pytest.raises(AggregationError, match="seed=-1"):
        sign_guard(rows, seed=-1)
