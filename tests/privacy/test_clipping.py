import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from privacy.clipping import MIN_CLIP_NORM, clip_by_norm, clip_scale, l2_norm, scale_vector
from privacy.errors import PrivacyError
from tests.looped import looped

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)
VECTORS = hnp.arrays(np.float32, st.integers(1, 50), elements=FLOATS)
CLIP_NORMS = st.floats(min_value=MIN_CLIP_NORM, max_value=1e39)

Vector = NDArray[np.float32]


def exact_norm(vector: Vector) -> float:
    # Squares of float32 are exact in float64, fsum adds them with one rounding.
    return math.sqrt(math.fsum(x * x for x in vector.astype(np.float64).tolist()))


@given(VECTORS)
def test_norm_is_exact_up_to_rounding(vector: Vector) -> None:
    assert l2_norm(vector) == pytest.approx(exact_norm(vector), rel=1e-14, abs=0)


def test_norm_does_not_overflow_or_underflow() -> None:
    largest = np.full(100_000, np.finfo(np.float32).max, dtype=np.float32)
    assert l2_norm(largest) == pytest.approx(float(largest[0]) * math.sqrt(100_000), rel=1e-12)
    smallest = np.full(4, np.finfo(np.float32).smallest_subnormal, dtype=np.float32)
    assert l2_norm(smallest) == 2 * float(smallest[0])
    assert l2_norm(np.zeros(3, dtype=np.float32)) == 0.0


@pytest.mark.parametrize("bits", ["0000c07f", "0000a07f", "0000807f", "000080ff"])
def test_norm_of_what_is_not_finite_is_not_finite(bits: str) -> None:
    vector = np.frombuffer(bytes(20_000 * 4) + bytes.fromhex(bits), dtype="<f4")
    assert not math.isfinite(l2_norm(vector))
    with pytest.raises(PrivacyError, match="must be finite"):
        clip_by_norm(vector, 1.0)


@given(VECTORS, CLIP_NORMS)
def test_clipped_norm_is_within_the_bound(vector: Vector, clip_norm: float) -> None:
    clipped = clip_by_norm(vector, clip_norm)
    assert clipped.dtype == np.float32
    assert l2_norm(clipped) <= clip_norm
    assert exact_norm(clipped) <= clip_norm


@looped("clip_norm", [MIN_CLIP_NORM, 1e-3, 1.0, 1e30])
@looped("dim", [1, 3, 100_000])
def test_clipped_norm_is_within_the_bound_for_long_vectors(clip_norm: float, dim: int) -> None:
    vector = np.random.default_rng(dim).standard_normal(dim).astype(np.float32)
    vector *= np.float32(clip_norm * 1.0001 / l2_norm(vector))
    for scaled in (vector, vector * np.float32(100)):
        norm = l2_norm(clip_by_norm(scaled, clip_norm))
        assert clip_norm * (1 - 1e-6) <= norm <= clip_norm


def test_rounding_without_a_margin_would_exceed_the_bound() -> None:
    generator = np.random.default_rng(0)
    norms = []
    for _ in range(50):
        vector = generator.standard_normal(3).astype(np.float32)
        norms.append(l2_norm(scale_vector(vector, 1.0 / l2_norm(vector))))
    assert max(norms) > 1.0


def test_direction_is_kept() -> None:
    vector = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    clipped = clip_by_norm(vector, 0.5).astype(np.float64)
    # One float32 rounding per coordinate, relative 2**-24.
    np.testing.assert_allclose(clipped / clipped[0], vector / vector[0].astype(float), rtol=2e-7)
    assert np.array_equal(np.sign(clipped), np.sign(vector))


def test_vectors_within_the_bound_are_returned_as_they_are() -> None:
    vector = np.array([3.0, 4.0], dtype=np.float32)
    assert clip_by_norm(vector, 5.0) is vector
    assert clip_by_norm(vector, np.nextafter(5.0, 0.0)) is not vector


def test_input_is_not_modified() -> None:
    vector = np.array([3.0, 4.0], dtype=np.float32)
    clip_by_norm(vector, 1.0)
    assert vector.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, 1e-31, math.inf, math.nan])
def test_bad_clip_norm_is_refused(clip_norm: float) -> None:
    with pytest.raises(PrivacyError, match="clip_norm="):
        clip_scale(1.0, clip_norm)
