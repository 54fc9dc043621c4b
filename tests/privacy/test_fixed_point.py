import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from privacy.clipping import clip_by_norm
from privacy.errors import PrivacyError
from privacy.fixed_point import (
    check_sum,
    fine_fraction_bits,
    from_grid,
    grid_norm,
    to_grid,
)
from tests.looped import looped

FLOATS = st.floats(-1e6, 1e6, width=32)
VECTORS = hnp.arrays(np.float32, st.integers(1, 40), elements=FLOATS)


@given(VECTORS, st.integers(0, 30))
def test_rounding_is_to_the_nearest_and_ties_to_even(
    vector: NDArray[np.float32], bits: int
) -> None:
    exact = [round(Fraction(value) * 2**bits) for value in vector.tolist()]
    assert to_grid(vector, fraction_bits=bits).tolist() == exact
    assert to_grid(vector.astype(np.float64), fraction_bits=bits).tolist() == exact


@given(VECTORS, st.floats(1e-3, 1e3), st.integers(0, 30))
def test_no_clipped_vector_exceeds_the_bound_on_the_grid(
    vector: NDArray[np.float32], clip_norm: float, bits: int
) -> None:
    integers = to_grid(clip_by_norm(vector, clip_norm), fraction_bits=bits).tolist()
    bound = grid_norm(clip_norm, fraction_bits=bits, dim=len(vector))
    assert sum(value * value for value in integers) <= bound**2


def test_a_bound_without_the_rounding_would_be_exceeded() -> None:
    # Every coordinate is rounded away from zero.
    vector = np.full(10_000, 0.51, np.float32)
    integers = to_grid(vector, fraction_bits=0)
    norm = math.sqrt(float((integers * integers).sum()))
    assert norm > 51.0 * (1 + 2.0**-22)
    assert norm <= grid_norm(51.0001, fraction_bits=0, dim=10_000)


@looped("dim", [1, 1000, 1 << 20, 1 << 24])
@looped("clip_norm", [1e-4, 0.1, 1.0, 1000.0])
def test_fine_grids_add_a_thousandth_at_most(clip_norm: float, dim: int) -> None:
    bits = fine_fraction_bits(clip_norm, dim=dim)
    assert 20 <= bits <= 52
    assert grid_norm(clip_norm, fraction_bits=bits, dim=dim) <= math.ldexp(
        clip_norm * (1 + 2.0**-9), bits
    )


def test_the_default_grid_serves_usual_updates() -> None:
    assert fine_fraction_bits(1.0, dim=1_000_000) == 20
    assert fine_fraction_bits(1e-20, dim=1) == 52


@given(hnp.arrays(np.int64, st.integers(1, 20), elements=st.integers(-(2**53), 2**53)))
def test_numbers_come_back_exactly(integers: NDArray[np.int64]) -> None:
    values = from_grid(integers, fraction_bits=20)
    assert [Fraction(value) * 2**20 for value in values.tolist()] == integers.tolist()
    halves = from_grid(integers, fraction_bits=20, divisor=3.0)
    assert halves.tolist() == [value / 3.0 for value in values.tolist()]


def test_a_sum_that_is_not_refused_fits() -> None:
    norm = (1 << 62) // 1000
    check_sum(num_terms=1000, norm=norm)
    total = np.full(1, norm, np.int64) * 1000 + ((1 << 62) - 1)
    assert int(total[0]) == norm * 1000 + (1 << 62) - 1
    with pytest.raises(PrivacyError, match="num_terms=1001"):
        check_sum(num_terms=1001, norm=norm)


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(PrivacyError, match="fraction_bits=53"):
        to_grid(np.ones(1, np.float32), fraction_bits=53)
    with pytest.raises(PrivacyError, match="fraction_bits=-1"):
        from_grid(np.ones(1, np.int64), fraction_bits=-1)
    with pytest.raises(PrivacyError, match="divisor=0"):
        from_grid(np.ones(1, np.int64), fraction_bits=1, divisor=0)
    for value in (math.nan, math.inf, 2.0**43):
        with pytest.raises(PrivacyError, match="finite and below"):
            to_grid(np.array([0.0, value]), fraction_bits=20)
    with pytest.raises(PrivacyError, match="clip_norm=0"):
        grid_norm(0.0, fraction_bits=20, dim=1)
    with pytest.raises(PrivacyError, match="clip_norm=1e"):
        grid_norm(1e30, fraction_bits=20, dim=1)
    with pytest.raises(PrivacyError, match="dim=0"):
        grid_norm(1.0, fraction_bits=20, dim=0)
