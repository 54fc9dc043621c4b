"""The attempts of the discrete Gaussian sampler in numpy: integers only.

Every step is arithmetic of uint64 words that wrap round, so the outcome is the same on every
machine. `compiled_sampling` runs these very functions in a loop.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.sampling_table import SamplingTable

Words = NDArray[np.uint64]

NAME: Final = "numpy"

_LOW: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)
_ONE: Final = np.uint64(1)
_TOP_BIT: Final = np.uint64(63)
_CELL_BITS: Final = np.uint64(56)  # e^-g is tabulated at multiples of 2^-8
_REST: Final = np.uint64((1 << 56) - 1)
_TWO: Final = np.uint64(2)
_THREE: Final = np.uint64(3)
_FOUR: Final = np.uint64(4)
_FIVE: Final = np.uint64(5)
_SIX: Final = np.uint64(6)


def high_product(a: Words, b: Words | np.uint64) -> Words:
    """Give floor(a b / 2^64)."""
    a_high, a_low, b_high, b_low = a >> _HALF, a & _LOW, b >> _HALF, b & _LOW
    middle = a_high * b_low + ((a_low * b_low) >> _HALF)
    carried = (middle & _LOW) + a_low * b_high
    product: Words = a_high * b_high + (middle >> _HALF) + (carried >> _HALF)
    return product


def one_minus_exp(rest: Words) -> Words:
    """Give 2^64 (1 - e^-r) for r = rest / 2^64 below 2^-8, within 1.1.

    1 - e^-r = T_1 with T_j = (r / j) (1 - T_(j+1)); T_7 is taken as 0: an error below r^7 / 7!.
    """
    term = rest // _SIX
    part = rest // _FIVE
    term = part - high_product(part, term)
    part = rest // _FOUR
    term = part - high_product(part, term)
    part = rest // _THREE
    term = part - high_product(part, term)
    part = rest // _TWO
    term = part - high_product(part, term)
    return rest - high_product(rest, term)


def acceptance(fraction: Words, slope: Words, curvature: np.uint64, exps: Words) -> Words:
    """Give 2^63 e^-g for g = f (slope + f curvature), all of them over 2^64; within 4."""
    exponent = high_product(fraction, slope + high_product(fraction, curvature))
    cell = exps[(exponent >> _CELL_BITS).astype(np.int64)]
    return cell - high_product(cell, one_minus_exp(exponent & _REST))


def attempt(out: NDArray[np.int64], words: Words, table: SamplingTable) -> int:
    """Make one attempt of every three words; write the accepted ones to `out` until it is full.

    Args:
        out: (size,), overwritten from the front.
        words: (3 attempts,).
        table: of the distribution.

    Returns:
        How many were written.
    """
    first, second, third = words[0::3], words[1::3], words[2::3]
    step = np.searchsorted(table.thresholds, first, side="right")
    offset = second & table.mask
    # Two shifts: one of 64 bits is not defined.
    fraction = (second << table.fraction_shift) << _ONE
    is_kept = (third >> _ONE) < acceptance(
        fraction, table.slopes[step], table.curvature, table.exps
    )
    magnitude = ((step.astype(np.uint64) << table.step_bits) | offset).astype(np.int64)
    is_negative = (second >> _TOP_BIT).astype(np.bool_)
    is_kept &= ~(is_negative & (magnitude == 0))  # zero has one sign
    kept = np.where(is_negative, -magnitude, magnitude)[is_kept][: len(out)]
    out[: len(kept)] = kept
    return len(kept)
