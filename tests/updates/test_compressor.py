from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.looped import looped
from updates.compression_plan import CompressionPlan, Method, dense_plan
from updates.compressor import compress, expand
from updates.coordinate_maps import linear_map
from updates.errors import CompressionError
from updates.index_coding import encode_coordinates
from updates.sparse import SparseValues
from updates.topk import Vector

SEED = bytes(range(32))
DIM = 12
COORDINATES = encode_coordinates(np.array([0, 5, 11], np.int64), DIM)
PLANS = [
    dense_plan(DIM),
    CompressionPlan(method=Method.TOP_K, dim=DIM, num_values=3),
    CompressionPlan(method=Method.RAND_K, dim=DIM, num_values=3, map_seed=SEED),
    CompressionPlan(method=Method.ANNOUNCED, dim=DIM, num_values=3, coordinates=COORDINATES),
    CompressionPlan(method=Method.PROJECTION, dim=DIM, num_values=3, map_seed=SEED),
]
DENSE, TOP_K, *MAPPED = PLANS
VECTORS = hnp.arrays(np.float32, DIM, elements=st.floats(-1e6, 1e6, width=32))


def name_of(plan: CompressionPlan) -> str:
    return plan.method.value


def floats(values: Sequence[float]) -> Vector:
    return np.array(values, np.float32)


def test_a_dense_update_is_sent_as_it_is() -> None:
    vector = floats(range(DIM))
    assert compress(DENSE, vector) is vector
    assert expand(DENSE, vector) is vector


def test_top_k_sends_the_largest_coordinates() -> None:
    vector = floats([0, 3, -7, 0, 2, 0, 0, 0, 1, 0, 9, 0])
    content = compress(TOP_K, vector)
    assert isinstance(content, SparseValues)
    assert (content.indices.tolist(), content.values.tolist()) == ([1, 2, 10], [3, -7, 9])
    assert expand(TOP_K, content).tolist() == [0, 3, -7, 0, 0, 0, 0, 0, 0, 0, 9, 0]


def test_where_fewer_coordinates_are_nonzero_fewer_are_sent() -> None:
    vector = np.zeros(DIM, np.float32)
    vector[4] = 1
    for expected in (vector, np.zeros(DIM, np.float32)):
        content = compress(TOP_K, expected)
        assert isinstance(content, SparseValues)
        assert len(content.indices) == np.count_nonzero(expected)
        np.testing.assert_array_equal(expand(TOP_K, content), expected)


@pytest.mark.parametrize("plan", MAPPED, ids=name_of)
def test_other_methods_send_what_the_common_map_gives(plan: CompressionPlan) -> None:
    vector = np.random.default_rng(0).standard_normal(DIM).astype(np.float32)
    content = compress(plan, vector)
    assert isinstance(content, np.ndarray)
    np.testing.assert_array_equal(content, linear_map(plan).compress(vector))
    np.testing.assert_array_equal(expand(plan, content), linear_map(plan).expand(content))


@pytest.mark.parametrize("plan", PLANS, ids=name_of)
@given(vector=VECTORS)
def test_what_is_sent_is_no_longer_and_is_all_that_remains(
    plan: CompressionPlan, vector: Vector
) -> None:
    before = vector.copy()
    once = expand(plan, compress(plan, vector))
    assert once.dtype == np.float32
    assert once.shape == (DIM,)
    np.testing.assert_array_equal(vector, before)
    length = np.linalg.norm(vector.astype(np.float64))
    # float32 rounds by 2^-24 of a number on the way there and again on the way back; subnormal
    # numbers by 2^-150 each.
    assert np.linalg.norm(once.astype(np.float64)) <= length * (1 + 2.0**-22) + 1e-43
    twice = expand(plan, compress(plan, once))
    np.testing.assert_allclose(twice, once, rtol=2.0**-21, atol=1e-43)


@looped("plan", PLANS, ids=name_of)
@looped("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_not_sent(plan: CompressionPlan, value: float) -> None:
    with pytest.raises(CompressionError, match="must be finite"):
        compress(plan, np.full(DIM, value, np.float32))


@pytest.mark.parametrize("plan", PLANS, ids=name_of)
def test_other_shapes_and_types_are_refused(plan: CompressionPlan) -> None:
    with pytest.raises(CompressionError, match=r"vector of float32\(13,\) must be float32 of"):
        compress(plan, np.zeros(DIM + 1, np.float32))
    with pytest.raises(CompressionError, match=r"vector of float64\(12,\) must be float32 of"):
        compress(plan, np.zeros(DIM))  # type: ignore[arg-type]  # that is the test
    with pytest.raises(CompressionError, match="must"):
        expand(plan, np.zeros(DIM + 1, np.float32))


def test_content_of_another_kind_is_refused() -> None:
    sparse = SparseValues(indices=np.array([1]), values=floats([2]), dim=DIM)
    for plan in (DENSE, *MAPPED):
        with pytest.raises(CompressionError, match="chosen coordinates must not come with"):
            expand(plan, sparse)
    other = SparseValues(indices=np.array([1]), values=floats([2]), dim=DIM + 1)
    with pytest.raises(CompressionError, match="must be chosen coordinates of dim=12"):
        expand(TOP_K, other)
    with pytest.raises(CompressionError, match="must be chosen coordinates of dim=12"):
        expand(TOP_K, np.zeros(3, np.float32))
