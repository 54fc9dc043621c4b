import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.cluster import HDBSCAN

from aggregators.rows.dense_rows import as_rows
from aggregators.rules.flame import cosine_distances, flame, flame_weights, joining_distances
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


def by_hdbscan(distances: Floats) -> list[bool]:
    """Cluster as the paper says."""
    clusterer = HDBSCAN(
        min_cluster_size=len(distances) // 2 + 1,
        min_samples=1,
        metric="precomputed",
        allow_single_cluster=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of later versions' defaults
        labels = clusterer.fit(distances.copy()).labels_
    return [bool(label == 0) for label in labels]


def symmetric(values: Floats) -> Floats:
    distances: Floats = np.triu(values, 1) + np.triu(values, 1).T
    return distances


@given(st.integers(0, 10_000), st.integers(2, 25))
def test_admits_what_hdbscan_clusters(seed: int, num_rows: int) -> None:
    values = np.random.default_rng(seed).uniform(0.0, 2.0, (num_rows, num_rows))
    distances = symmetric(values)
    joined_at = joining_distances(distances)
    assert (joined_at == joined_at.min()).tolist() == by_hdbscan(distances)


# Of multiples of 1/4 no two have one reciprocal: HDBSCAN compares reciprocals.
@given(st.integers(0, 10_000), st.integers(2, 12))
def test_admits_what_hdbscan_clusters_where_distances_tie(seed: int, num_rows: int) -> None:
    values = np.random.default_rng(seed).integers(0, 8, (num_rows, num_rows)) / 4
    distances = symmetric(values)
    joined_at = joining_distances(distances)
    assert (joined_at == joined_at.min()).tolist() == by_hdbscan(distances)


@given(st.integers(0, 10_000), st.integers(3, 15))
def test_rows_join_the_majority_where_a_path_of_short_steps_reaches_it(
    seed: int, num_rows: int
) -> None:
    distances = symmetric(np.random.default_rng(seed).uniform(0.0, 2.0, (num_rows, num_rows)))
    paths = distances.copy()
    for middle in range(num_rows):  # Floyd and Warshall, for the longest step of a path
        np.minimum(paths, np.maximum(paths[:, [middle]], paths[middle]), out=paths)
    joined_at = joining_distances(distances)
    formed_at = np.sort(paths, axis=1)[:, num_rows // 2].min()
    majority = int(np.argmin(np.sort(paths, axis=1)[:, num_rows // 2]))
    assert joined_at.tolist() == np.maximum(paths[majority], formed_at).tolist()


@looped("seed", range(6))
def test_agrees_with_brute_force(seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((9, 6)).astype(np.float32)
    rows *= np.float32(10.0) ** np.arange(-4, 5, dtype=np.float32)[:, np.newaxis]
    wide = rows.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1)
    units = wide / norms[:, np.newaxis]
    distances = 1.0 - units @ units.T
    np.fill_diagonal(distances, 0.0)
    admitted = by_hdbscan(distances)
    clipped = wide * np.minimum(1.0, np.median(norms) / norms)[:, np.newaxis]
    found = flame(rows)
    assert found.selected.tolist() == admitted
    np.testing.assert_allclose(found.vector, clipped[admitted].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.weights @ wide, clipped[admitted].mean(axis=0), rtol=1e-9)


@pytest.mark.parametrize("length", [1.0, 1e10, 1e30])
def test_cosine_distances_are_exact_for_rows_of_any_length(length: float) -> None:
    rows = honest_rows(seed=1, num_rows=5, dim=9)
    rows[0] *= -1.0
    rows[:2] *= np.float32(length)
    wide = rows.astype(np.float64)
    units = wide / np.linalg.norm(wide, axis=1)[:, np.newaxis]
    expected = 0.5 * np.square(units[:, np.newaxis] - units).sum(axis=2)
    np.testing.assert_allclose(cosine_distances(as_rows(rows).gram()), expected, atol=1e-14)


def test_cosine_distances_of_like_directions_keep_their_digits() -> None:
    rows = np.array([[1.0, 0.0], [1.0, 1e-6], [1.0, 3e-6]], dtype=np.float32)
    found = cosine_distances(as_rows(rows).gram())
    gaps = rows[:, 1].astype(np.float64)
    expected = 0.5 * np.square(gaps[:, np.newaxis] - gaps)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_a_row_of_zeros_is_at_distance_one() -> None:
    rows = np.array([[0, 0], [3, 0], [0, 0]], dtype=np.float32)
    found = cosine_distances(as_rows(rows).gram())
    assert found.tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]


@given(matrices(), st.data())
def test_row_order_leaves_every_bit(rows: Matrix, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    found, shuffled = flame(rows), flame(rows[order])
    assert shuffled.vector.tobytes() == found.vector.tobytes()
    assert shuffled.weights.tobytes() == found.weights[order].tobytes()


@given(st.one_of(matrices(), matrices(elements=TIED_FLOAT)))
def test_admits_more_than_half(rows: Matrix) -> None:
    scores = flame(rows).scores
    assert scores is not None
    assert 2 * int((scores <= scores.min() * (1 + 1e-9)).sum()) > len(rows)


@given(matrices())
def test_is_at_most_as_long_as_the_median_norm(rows: Matrix) -> None:
    vector = flame(rows).vector.astype(np.float64)
    median = float(np.median(np.linalg.norm(rows.astype(np.float64), axis=1)))
    assert np.linalg.norm(vector) <= median * (1 + 1e-6) + 3e-45


@looped("name", ATTACKS)
def test_a_minority_makes_it_no_longer_than_the_longest_of_the_others(name: str) -> None:
    honest = honest_rows(seed=2, num_rows=6, dim=50)
    rows = np.vstack([attack(name, honest, 5), honest])
    longest = float(np.linalg.norm(honest, axis=1).max())
    assert np.linalg.norm(flame(rows).vector) <= longest * (1 + 1e-6)


def test_half_of_the_rows_make_it_as_long_as_they_like() -> None:
    honest = honest_rows(seed=3, num_rows=5, dim=50)
    rows = np.vstack([attack("plus_1e30", honest, 5), honest])
    assert np.abs(flame(rows).vector).max() > 1e28


@pytest.mark.parametrize("name", ["minus_1e30", "alternating_1e30"])
def test_other_directions_are_not_admitted(name: str) -> None:
    honest = honest_rows(seed=4, num_rows=7, dim=50)
    found = flame(np.vstack([attack(name, honest, 3), honest]))
    assert not found.selected[:3].any()


def test_scaling_rows_leaves_who_is_admitted() -> None:
    rows = np.random.default_rng(5).standard_normal((9, 6)).astype(np.float32)
    factors = 10.0 ** np.arange(-20, 25, 5)[:, np.newaxis]
    scaled = flame((rows * factors).astype(np.float32))
    assert scaled.selected.tolist() == flame(rows).selected.tolist()


@pytest.mark.parametrize("factor", [2.0**-90, 2.0**90])
def test_scaling_scales_the_result(factor: float) -> None:
    rows = honest_rows(seed=6, num_rows=7, dim=9)
    found = flame((rows * factor).astype(np.float32))
    np.testing.assert_allclose(found.vector / factor, flame(rows).vector, rtol=1e-6)


@looped("num_rows", [1, 2, 5])
@looped("value", [0.0, 1e-30, 0.3, 3e38])
def test_equal_rows_give_that_row(num_rows: int, value: float) -> None:
    rows = np.full((num_rows, 3), value, dtype=np.float32)
    assert flame(rows).vector.tolist() == rows[0].tolist()


def test_a_majority_of_zeros_gives_zeros() -> None:
    rows = np.array([[0, 0], [0, 0], [0, 0], [1, 0], [1, 1e-3]], dtype=np.float32)
    assert flame(rows).vector.tolist() == [0.0, 0.0]


def test_weights_alone_follow_from_the_gram_matrix() -> None:
    rows = honest_rows(seed=7, num_rows=8, dim=20)
    found = flame_weights(as_rows(rows).gram())
    np.testing.assert_allclose(found.weights / found.total, flame(rows).weights, rtol=1e-9)
