"""The maps against what their documentation says, written out as matrices."""

import hashlib
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.looped import looped
from updates.compression_plan import COMMON_MAPS, CompressionPlan, Method, dense_plan
from updates.coordinate_maps import announced_indices, linear_map, map_seed_of
from updates.errors import CompressionError
from updates.index_coding import encode_coordinates
from updates.topk import Vector

Matrix = NDArray[np.float64]

METHODS = sorted(COMMON_MAPS, key=lambda method: method.value)
SHAPES = [(1, 1), (5, 1), (5, 5), (5, 2), (16, 4), (17, 4), (40, 7), (64, 63), (1000, 13)]


def seed_of(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def plan_for(method: Method, dim: int, num_values: int, number: int = 0) -> CompressionPlan:
    if method is not Method.ANNOUNCED:
        return CompressionPlan(
            method=method, dim=dim, num_values=num_values, map_seed=seed_of(number)
        )
    rng = np.random.default_rng(number)
    indices = np.sort(rng.permutation(dim)[:num_values]).astype(np.int64)
    coordinates = encode_coordinates(indices, dim)
    return CompressionPlan(method=method, dim=dim, num_values=num_values, coordinates=coordinates)


def stream(purpose: str, seed: bytes, dim: int, num_values: int, count: int) -> bytes:
    """One segment is enough here."""
    text = b"fedagg compression map v1" + bytes([len(purpose)]) + purpose.encode() + seed
    text += struct.pack("<QQQ", dim, num_values, 0)
    return hashlib.shake_256(text).digest(count)


def matrix_of(plan: CompressionPlan) -> Matrix:
    """P as the module's documentation defines it, a coordinate at a time."""
    d, k = plan.dim, plan.num_values
    matrix = np.zeros((k, d))
    if plan.method is Method.PROJECTION:
        blocks = (d + k - 1) // k
        offsets = struct.unpack(f"<{blocks}Q", stream("offsets", plan.map_seed, d, k, 8 * blocks))
        signs = stream("signs", plan.map_seed, d, k, (d + 7) // 8)
        for i in range(d):
            negative = signs[i // 8] >> (i % 8) & 1
            matrix[(i % k + offsets[i // k]) % k, i] = -1.0 if negative else 1.0
        matrix /= np.sqrt(np.abs(matrix).sum(axis=1, keepdims=True))
        return matrix
    if plan.method is Method.RAND_K:
        keys = struct.unpack(f"<{d}I", stream("rand-k", plan.map_seed, d, k, 4 * d))
        order = sorted(range(d), key=lambda i: (-keys[i], i))
        chosen = sorted(order[:k])
    else:
        rng = np.random.default_rng(0)
        chosen = sorted(rng.permutation(d)[:k].tolist())
    for row, i in enumerate(chosen):
        matrix[row, i] = 1.0
    return matrix


def normal(size: int, number: int = 0) -> Vector:
    return np.random.default_rng(number).standard_normal(size).astype(np.float32)


@looped("method", METHODS)
@looped("shape", SHAPES)
def test_it_is_the_documented_matrix(method: Method, shape: tuple[int, int]) -> None:
    plan = plan_for(method, *shape)
    matrix = matrix_of(plan)
    vector, values = normal(plan.dim), normal(plan.num_values, 1)
    mapped = linear_map(plan)
    assert (mapped.dim, mapped.num_values) == shape
    compressed = mapped.compress(vector)
    assert compressed.dtype == np.float32
    # One rounding of float32; cancelling sums keep float64's precision relative to their terms.
    np.testing.assert_allclose(compressed, matrix @ vector, rtol=2.0**-23, atol=1e-12)
    expanded = mapped.expand(values)
    assert expanded.dtype == np.float32
    np.testing.assert_allclose(expanded, matrix.T @ values, rtol=2.0**-23)
    widened = values.astype(np.float64)
    precise = mapped.expand(widened)
    assert precise.dtype == np.float64
    np.testing.assert_allclose(precise, matrix.T @ widened, rtol=1e-15)


@looped("method", METHODS)
@looped("shape", SHAPES)
def test_expanding_is_the_transpose_and_loses_nothing(
    method: Method, shape: tuple[int, int]
) -> None:
    matrix = matrix_of(plan_for(method, *shape))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(shape[1]), atol=1e-15)
    mapped = linear_map(plan_for(method, *shape))
    values = normal(shape[1])
    np.testing.assert_allclose(mapped.compress(mapped.expand(values)), values, rtol=2.0**-22)


@pytest.mark.parametrize("dim_and_values", [(600_000, 1_003), (600_001, 300_001), (300_000, 3)])
def test_long_vectors_are_mapped_in_chunks(dim_and_values: tuple[int, int]) -> None:
    """Against sums by row of all coordinates at once."""
    d, k = dim_and_values
    plan = plan_for(Method.PROJECTION, d, k)
    signs = np.frombuffer(stream("signs", plan.map_seed, d, k, (d + 7) // 8), np.uint8)
    negative = np.unpackbits(signs, bitorder="little")[:d].astype(np.bool_)
    blocks = (d + k - 1) // k
    offsets = np.frombuffer(stream("offsets", plan.map_seed, d, k, 8 * blocks), "<u8")
    place = np.arange(d)
    rows = (place % k + np.repeat(offsets % k, k)[:d].astype(np.int64)) % k
    vector = normal(d)
    signed = np.where(negative, -vector, vector)
    scales = 1 / np.sqrt(np.bincount(rows, minlength=k))
    expected = np.bincount(rows, signed, minlength=k) * scales
    mapped = linear_map(plan)
    np.testing.assert_allclose(mapped.compress(vector), expected, rtol=2.0**-23, atol=1e-9)
    values = normal(k, 1)
    wanted = np.where(negative, -1.0, 1.0) * (values * scales)[rows]
    np.testing.assert_array_equal(mapped.expand(values), wanted.astype(np.float32))


@given(
    st.sampled_from(METHODS),
    st.integers(1, 200),
    st.floats(0.001, 1),
    st.integers(0, 5),
    st.floats(-8, 8, width=16),
)
def test_maps_are_linear_and_make_nothing_longer(
    method: Method, dim: int, ratio: float, number: int, factor: float
) -> None:
    plan = plan_for(method, dim, max(1, round(ratio * dim)), number)
    mapped = linear_map(plan)
    x, y = normal(dim, 1), normal(dim, 2)
    px, py = mapped.compress(x).astype(np.float64), mapped.compress(y).astype(np.float64)
    together = (factor * x + y).astype(np.float32)
    # Each of the three results, and the sum, rounds by 2^-24 of at most 9 times a row's sum.
    atol = 2.0**-22 * 9 * float(np.abs(x).sum() + np.abs(y).sum())
    np.testing.assert_allclose(mapped.compress(together), factor * px + py, rtol=0, atol=atol)
    rounding = 1 + 2.0**-23
    assert np.linalg.norm(px) <= np.linalg.norm(x.astype(np.float64)) * rounding
    values = normal(plan.num_values, 3)
    length = np.linalg.norm(values.astype(np.float64))
    expanded = mapped.expand(values).astype(np.float64)
    assert length / rounding <= np.linalg.norm(expanded) <= length * rounding


def test_equal_plans_have_one_map_and_other_seeds_have_others() -> None:
    plan = plan_for(Method.PROJECTION, 100, 10)
    assert linear_map(plan) is linear_map(plan_for(Method.PROJECTION, 100, 10))
    vector = normal(100)
    for method in (Method.PROJECTION, Method.RAND_K):
        one, other = (linear_map(plan_for(method, 100, 10, number)) for number in (0, 1))
        assert one.compress(vector).tolist() != other.compress(vector).tolist()


def test_vectors_are_not_modified_and_need_not_be_contiguous() -> None:
    for method in METHODS:
        mapped = linear_map(plan_for(method, 40, 7))
        spread = normal(80)[::2]
        before = spread.copy()
        expected = mapped.compress(spread.copy())
        np.testing.assert_array_equal(mapped.compress(spread), expected)
        np.testing.assert_array_equal(spread, before)


def gram_of_projection(dim: int, num_values: int, seeds: range) -> Matrix:
    """The mean of P^T P over seeds, by the maps themselves."""
    total = np.zeros((dim, dim))
    for number in seeds:
        mapped = linear_map(plan_for(Method.PROJECTION, dim, num_values, number))
        columns = np.array([mapped.compress(row) for row in np.eye(dim, dtype=np.float32)])
        total += columns.astype(np.float64) @ columns.T
    return total / len(seeds)


def test_inner_products_of_projections_are_unbiased_up_to_the_ratio() -> None:
    dim, num_values, seeds = 12, 4, range(2_000)
    ratio = num_values / dim
    gram = gram_of_projection(dim, num_values, seeds)
    np.testing.assert_allclose(np.diag(gram), ratio, rtol=1e-6)
    # Two coordinates of different blocks meet in a row with chance 1/k and then give +-ratio: a
    # mean has a deviation of ratio / sqrt(k n), and 6 of them cover 66 pairs.
    tolerance = 6 * ratio / np.sqrt(num_values * len(seeds))
    off_diagonal = gram[~np.eye(dim, dtype=np.bool_)]
    assert np.abs(off_diagonal).max() < tolerance
    # The control: with one seed the pairs that meet do not cancel.
    alone = gram_of_projection(dim, num_values, range(1))
    assert np.abs(alone[~np.eye(dim, dtype=np.bool_)]).max() > tolerance
    assert not np.allclose(np.diag(gram), 1.1 * ratio, rtol=1e-2)


def test_coordinates_of_a_shorter_last_block_weigh_less_and_no_more_than_documented() -> None:
    """With d = 10 and k = 4, rows have 2 or 3 coordinates; block 3 has 2, so 2 rows have 3."""
    gram = gram_of_projection(10, 4, range(1_000))
    np.testing.assert_allclose(np.diag(gram)[8:], 1 / 3, rtol=1e-6)
    # A mean of 1/2 and 1/3 with equal chances: its deviation is (1/12) / sqrt(1000).
    expected = (1 / 2 + 1 / 3) / 2
    assert np.abs(np.diag(gram)[:8] - expected).max() < 6 / 12 / np.sqrt(1_000)


def times_kept(dim: int, num_values: int, draws: int) -> NDArray[np.int64]:
    counts = np.zeros(dim, np.int64)
    everything = np.ones(num_values, np.float32)
    for number in range(draws):
        mapped = linear_map(plan_for(Method.RAND_K, dim, num_values, number))
        counts += mapped.expand(everything).astype(np.int64)
    return counts


def test_rand_k_keeps_every_coordinate_with_the_same_chance() -> None:
    dim, num_values, draws = 30, 6, 3_000
    counts = times_kept(dim, num_values, draws)
    ratio = num_values / dim
    assert counts.sum() == num_values * draws
    deviation = np.sqrt(draws * ratio * (1 - ratio))
    assert np.abs(counts - draws * ratio).max() < 5 * deviation
    # The control: a chance three tenths larger would show in every coordinate.
    assert np.abs(counts - draws * ratio * 1.3).min() > 5 * deviation


@pytest.mark.parametrize("method", METHODS)
def test_a_map_of_a_long_vector_needs_memory_for_a_few_vectors(method: Method) -> None:
    dim = 2_000_000
    plan = plan_for(method, dim, dim // 10)
    vector = normal(dim)
    tracemalloc.start()
    try:
        mapped = linear_map(plan)
        held, made = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        mapped.expand(mapped.compress(vector))
        _, used = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.5 * dim
    assert made < 20 * dim
    # The expanded vector is 4 d bytes; the rest does not grow with d but with k.
    assert used < held + 4 * dim + 40 * dim // 10 + (1 << 24)


@pytest.mark.parametrize("method", METHODS)
def test_other_shapes_types_and_numbers_are_refused(method: Method) -> None:
    mapped = linear_map(plan_for(method, 6, 2))
    with pytest.raises(CompressionError, match=r"vector of float32\(5,\) must be float32"):
        mapped.compress(np.zeros(5, np.float32))
    with pytest.raises(CompressionError, match=r"vector of float64\(6,\) must be float32"):
        mapped.compress(np.zeros(6))  # type: ignore[arg-type]  # that is the test
    with pytest.raises(CompressionError, match=r"values of float32\(3,\) must be"):
        mapped.expand(np.zeros(3, np.float32))
    with pytest.raises(CompressionError, match=r"values of int64\(2,\) must be"):
        mapped.expand(np.zeros(2, np.int64))  # type: ignore[type-var]  # that is the test
    for value in (np.nan, np.inf):
        with pytest.raises(CompressionError, match=r"of the mapped vector, .*must be finite"):
            mapped.compress(np.full(6, value, np.float32))


def test_sums_too_large_for_float32_are_refused() -> None:
    mapped = linear_map(plan_for(Method.PROJECTION, 4, 1))
    signs = np.sign(mapped.expand(np.ones(1, np.float32)))
    largest = np.finfo(np.float32).max
    with pytest.raises(CompressionError, match="number 0 of the mapped vector, inf"):
        mapped.compress(signs * largest)


def test_only_common_maps_are_linear_maps() -> None:
    top_k = CompressionPlan(method=Method.TOP_K, dim=5, num_values=2)
    for plan in (dense_plan(5), top_k):
        with pytest.raises(CompressionError, match="must be one linear map for all devices"):
            linear_map(plan)


def test_announced_coordinates_must_be_as_many_as_the_plan_says() -> None:
    coordinates = encode_coordinates(np.array([1, 3], np.int64), 5)
    plan = CompressionPlan(method=Method.ANNOUNCED, dim=5, num_values=3, coordinates=coordinates)
    with pytest.raises(CompressionError, match="num_values=3 must be the number of announced"):
        linear_map(plan)


def test_the_seed_depends_on_all_that_names_the_round() -> None:
    seeds = [
        map_seed_of("task", 1, "ab"),
        map_seed_of("task", 2, "ab"),
        map_seed_of("tas", 1, "kab"),
        map_seed_of("taskab", 1, ""),
        map_seed_of("task", 1, "ac"),
        map_seed_of("other", 1, "ab"),
    ]
    assert len(set(seeds)) == len(seeds)
    assert {len(seed) for seed in seeds} == {32}
    assert map_seed_of("task", 1, "ab") == seeds[0]
    with pytest.raises(CompressionError, match="round_number=-1 must be in"):
        map_seed_of("task", -1, "ab")


def announced(change: Vector, num_values: int, random_share: float, number: int = 0) -> list[int]:
    indices = announced_indices(
        change, num_values=num_values, random_share=random_share, seed=seed_of(number)
    )
    assert indices.dtype == np.int64
    assert (np.diff(indices) > 0).all()
    assert len(indices) == num_values
    return [int(index) for index in indices]


def test_the_largest_changes_are_announced_with_others_drawn() -> None:
    change = np.zeros(50, np.float32)
    change[[3, 17, 20, 41]] = [5, -9, 1, 7]
    assert announced(change, 4, 0.0) == [3, 17, 20, 41]
    half = announced(change, 4, 0.5)
    assert {17, 41} <= set(half)
    assert len({tuple(announced(change, 4, 0.5, number)) for number in range(5)}) > 1
    assert announced(change, 4, 0.5) == half


def test_where_few_coordinates_changed_more_are_drawn() -> None:
    change = np.zeros(50, np.float32)
    change[7] = 1
    assert 7 in announced(change, 6, 0.0)
    assert announced(np.zeros(50, np.float32), 6, 0.0) == announced(np.ones(50, np.float32), 6, 1.0)
    assert announced(change, 50, 0.5) == list(range(50))


def test_coordinates_outside_the_largest_have_equal_chances() -> None:
    change = np.zeros(24, np.float32)
    change[:4] = 1
    draws = 2_000
    counts = np.zeros(24)
    for number in range(draws):
        counts[announced(change, 8, 0.5, number)] += 1
    assert (counts[:4] == draws).all()
    deviation = np.sqrt(draws * 0.2 * 0.8)
    assert np.abs(counts[4:] - 0.2 * draws).max() < 5 * deviation
    assert np.abs(counts[4:] - 0.3 * draws).min() > 5 * deviation  # the control


@pytest.mark.parametrize(
    ("num_values", "random_share", "problem"),
    [
        (0, 0.5, r"num_values=0 must be in 1\.\.3"),
        (4, 0.5, r"num_values=4 must be in 1\.\.3"),
        (1, -0.1, r"random_share=-0.1 must be in 0\.\.1"),
        (1, 1.5, r"random_share=1.5 must be in 0\.\.1"),
        (1, float("nan"), r"random_share=nan must be in 0\.\.1"),
    ],
)
def test_announcements_out_of_range_are_refused(
    num_values: int, random_share: float, problem: str
) -> None:
    change = np.zeros(3, np.float32)
    with pytest.raises(CompressionError, match=problem):
        announced_indices(change, num_values=num_values, random_share=random_share, seed=seed_of(0))


def test_changes_that_are_not_finite_are_refused() -> None:
    with pytest.raises(CompressionError, match=r"vector\[1\]=nan must be finite"):
        announced_indices(
            np.array([0, np.nan], np.float32), num_values=1, random_share=0.0, seed=seed_of(0)
        )
