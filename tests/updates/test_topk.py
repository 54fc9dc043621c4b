import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tests.looped import looped
from updates.errors import CompressionError
from updates.topk import Keys, Vector, largest_keys, magnitude_keys, top_k

SMALLEST = np.float32(2.0**-149)
LARGEST = np.finfo(np.float32).max
# Few different magnitudes, so that most vectors have ties, and all kinds of them.
TIED = st.sampled_from([0.0, -0.0, SMALLEST, -SMALLEST, 1.0, -1.0, 1.5, LARGEST, -LARGEST])
ANY = st.floats(allow_nan=False, allow_infinity=False, width=32)
VECTORS = hnp.arrays(np.float32, st.integers(0, 40), elements=TIED | ANY)


def by_sorting(vector: Vector, num_values: int) -> list[int]:
    """The definition: by falling magnitude, then by position; zeros do not count."""
    magnitudes = np.abs(vector.astype(np.float64))
    order = np.lexsort((np.arange(len(vector)), -magnitudes))
    return sorted(int(i) for i in order[:num_values] if vector[i] != 0)


@given(VECTORS, st.integers(1, 45))
def test_it_is_what_sorting_by_magnitude_and_position_gives(vector: Vector, k: int) -> None:
    before = vector.copy()
    chosen = top_k(vector, k)
    assert chosen.dtype == np.int64
    assert chosen.tolist() == by_sorting(vector, k)
    np.testing.assert_array_equal(vector.view(np.uint32), before.view(np.uint32))


@looped("k", [1, 7, 100, 4_999, 5_000])
@looped("share_of_zeros", [0.0, 0.4, 0.999])
def test_long_vectors_with_many_equal_magnitudes(k: int, share_of_zeros: float) -> None:
    rng = np.random.default_rng(k)
    vector = rng.integers(-20, 21, 5_000).astype(np.float32)
    vector[rng.random(5_000) < share_of_zeros] = 0
    assert top_k(vector, k).tolist() == by_sorting(vector, k)


def test_of_equal_magnitudes_the_lower_positions_are_chosen() -> None:
    vector = np.array([1, -2, 2, -1, 2, 1], np.float32)
    assert top_k(vector, 2).tolist() == [1, 2]
    assert top_k(vector, 4).tolist() == [0, 1, 2, 4]


def test_zeros_of_either_sign_are_never_chosen_and_subnormal_numbers_are() -> None:
    vector = np.array([0.0, -0.0, -SMALLEST, 0.0], np.float32)
    assert top_k(vector, 3).tolist() == [2]
    assert top_k(np.zeros(5, np.float32), 5).tolist() == []
    assert top_k(np.zeros(0, np.float32), 1).tolist() == []


def test_a_vector_need_not_be_contiguous() -> None:
    vector = np.arange(12, dtype=np.float32)[::-3]
    assert top_k(vector, 2).tolist() == by_sorting(vector, 2)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    vector = np.array([1, 2, value, 3], np.float32)
    with pytest.raises(CompressionError, match=r"vector\[2\]=-?(nan|inf) must be finite"):
        top_k(vector, 1)


def test_other_types_and_shapes_are_refused() -> None:
    doubles: NDArray[np.float64] = np.zeros(3)
    with pytest.raises(CompressionError, match=r"vector of float64\(3,\) must be float32"):
        top_k(doubles, 1)  # type: ignore[arg-type]  # that is the test
    with pytest.raises(CompressionError, match="must be float32 of shape"):
        top_k(np.zeros((2, 2), np.float32), 1)
    with pytest.raises(CompressionError, match="num_values=0 must be at least 1"):
        top_k(np.zeros(3, np.float32), 0)


@given(VECTORS)
def test_keys_are_ordered_as_magnitudes_are(vector: Vector) -> None:
    keys = magnitude_keys(vector).astype(np.int64)
    magnitudes = np.abs(vector.astype(np.float64))
    np.testing.assert_array_equal(
        np.sign(keys[:, None] - keys), np.sign(magnitudes[:, None] - magnitudes)
    )


@given(hnp.arrays(np.uint32, st.integers(0, 30), elements=st.integers(0, 5)), st.data())
def test_largest_keys_are_what_sorting_gives(keys: Keys, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(keys)))
    order = np.lexsort((np.arange(len(keys)), -keys.astype(np.int64)))
    assert largest_keys(keys, count).tolist() == sorted(order[:count].tolist())


@pytest.mark.parametrize("count", [-1, 4])
def test_more_keys_than_there_are_cannot_be_chosen(count: int) -> None:
    with pytest.raises(CompressionError, match=rf"num_keys={count} must be in 0\.\.3"):
        largest_keys(np.zeros(3, np.uint32), count)
