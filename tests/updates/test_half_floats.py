"""Every half float, the middle between each two, and what lies beside those middles."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from updates.half_floats import (
    MAX_BFLOAT16,
    MAX_FLOAT16,
    from_bfloat16,
    from_float16,
    to_bfloat16,
    to_float16,
)

Vector = NDArray[np.float32]

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)
VECTORS = hnp.arrays(np.float32, st.integers(0, 50), elements=FLOATS)
ALL_WORDS = np.arange(1 << 16, dtype=np.uint16)


def finite_float16() -> Vector:
    values = ALL_WORDS.view(np.float16).astype(np.float32)
    return values[np.isfinite(values)]


def finite_bfloat16() -> Vector:
    values = (ALL_WORDS.astype(np.uint32) << 16).view(np.float32)
    return values[np.isfinite(values)]


def with_middles(values: Vector) -> Vector:
    """Each value, the middle to the next, and the float32 just beside each middle."""
    ordered = np.unique(values).astype(np.float64)
    middles = ((ordered[1:] + ordered[:-1]) / 2).astype(np.float32)
    up, down = np.float32(np.inf), np.float32(-np.inf)
    return np.concatenate(
        (values, middles, np.nextafter(middles, up), np.nextafter(middles, down)), dtype=np.float32
    )


def nearest(values: Vector, grid: Vector) -> Vector:
    """Search by brute force; ties to the value whose bits are even."""
    ordered = np.unique(np.abs(grid)).astype(np.float64)
    magnitudes = np.abs(values).astype(np.float64)
    right = np.clip(np.searchsorted(ordered, magnitudes), 1, len(ordered) - 1)
    below, above = magnitudes - ordered[right - 1], ordered[right] - magnitudes
    # The grid starts with zero, so that the parity of a place is that of the bits.
    picked = np.where((above < below) | ((above == below) & (right % 2 == 0)), right, right - 1)
    return np.copysign(ordered[picked], values).astype(np.float32)


def test_float16_rounds_to_the_nearest_with_ties_to_even() -> None:
    values = with_middles(finite_float16())
    assert from_float16(to_float16(values)).tobytes() == nearest(values, finite_float16()).tobytes()
    inside = values[np.abs(values) <= MAX_FLOAT16]
    assert to_float16(inside).tobytes() == inside.astype(np.float16).tobytes()


def test_bfloat16_rounds_to_the_nearest_with_ties_to_even() -> None:
    values = with_middles(finite_bfloat16())
    values = values[np.isfinite(values)]
    expected = nearest(values, finite_bfloat16())
    assert from_bfloat16(to_bfloat16(values)).tobytes() == expected.tobytes()


@given(VECTORS)
def test_what_exceeds_the_largest_becomes_the_largest(values: Vector) -> None:
    for there, back, largest in (
        (to_float16, from_float16, MAX_FLOAT16),
        (to_bfloat16, from_bfloat16, MAX_BFLOAT16),
    ):
        found = back(there(values))
        assert np.isfinite(found).all()
        beyond = np.abs(values) >= largest
        assert (np.abs(found[beyond]) == np.float32(largest)).all()
        assert (np.sign(found[beyond]) == np.sign(values[beyond])).all()


def test_numpy_agrees_on_every_bit_pattern_back() -> None:
    expected = ALL_WORDS.view(np.float16).astype(np.float32)
    assert from_float16(ALL_WORDS).tobytes() == expected.tobytes()


@pytest.mark.parametrize("count", [0, 1, (1 << 14) - 1, 1 << 14, (1 << 14) + 1])
def test_the_end_of_a_chunk_is_no_seam(count: int) -> None:
    values = np.linspace(-3, 3, count, dtype=np.float32)
    assert to_float16(values).tobytes() == values.astype(np.float16).tobytes()
    assert len(to_bfloat16(values)) == count
