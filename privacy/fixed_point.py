"""Vectors on an integer grid: where sums are exact, and noise has no low bits to read.

Floating-point sums and noise leak through their last digits (Mironov 2012). Here every private sum
is one of integers, in units of 2^-f.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.clipping import MIN_CLIP_NORM
from privacy.errors import PrivacyError

MAX_FRACTION_BITS: Final = 52
DEFAULT_FRACTION_BITS: Final = 20

_MAX_MAGNITUDE: Final = 1 << 62  # of a sum, and of the noise added to it: both fit an int64
# A vector clipped by `privacy.clipping` is within the norm up to the error of measuring it.
_CLIP_SLACK: Final = 1.0 + 2.0**-22
_EXTRA_BITS: Final = 9  # rounding then adds at most 2^-10 of the clipping norm


def grid_norm(clip_norm: float, *, fraction_bits: int, dim: int) -> int:
    """Bound the L2 norm of a clipped vector on the grid, in units of 2^-f.

    Q = C 2^f (1 + 2^-22) + sqrt(d) / 2, rounded up: each of the d coordinates moves by at most a
    half. This is the sensitivity of a sum of such vectors to one of them.

    Args:
        clip_norm: C, from `MIN_CLIP_NORM`.
        fraction_bits: f, 0 to 52.
        dim: d, from 1.

    Raises:
        PrivacyError: if an argument is out of range, or Q is not below 2^62.
    """
    check_fraction_bits(fraction_bits)
    if not MIN_CLIP_NORM <= clip_norm < math.inf:
        message = f"clip_norm={clip_norm} must be finite and at least {MIN_CLIP_NORM}"
        raise PrivacyError(message)
    if dim < 1:
        message = f"dim={dim} must be at least 1"
        raise PrivacyError(message)
    bound = math.ldexp(clip_norm, fraction_bits) * _CLIP_SLACK + math.sqrt(dim) / 2.0
    if not bound < _MAX_MAGNITUDE:
        message = f"clip_norm={clip_norm} with fraction_bits={fraction_bits} must be below 2^62"
        raise PrivacyError(message)
    return math.ceil(bound)


def fine_fraction_bits(clip_norm: float, *, dim: int) -> int:
    """Choose f so fine that rounding adds at most 2^-10 of the clipping norm to it.

    The default, or more where C is small or d large; never above 52.

    Raises:
        PrivacyError: if an argument is out of range.
    """
    grid_norm(clip_norm, fraction_bits=0, dim=dim)
    wanted = math.sqrt(dim) / clip_norm
    least = max(0, math.frexp(wanted)[1]) + _EXTRA_BITS
    return min(max(DEFAULT_FRACTION_BITS, least), MAX_FRACTION_BITS)


def to_grid(values: NDArray[np.floating], *, fraction_bits: int) -> NDArray[np.int64]:
    """Round values to multiples of 2^-f, ties to even.

    Args:
        values: (d,), float32 or float64, finite. Not modified.
        fraction_bits: f, 0 to 52.

    Returns:
        (d,), int64: rint(values 2^f).

    Raises:
        PrivacyError: if f is out of range, or an integer is not below 2^62 in magnitude.

    Guarantees:
        Each integer is within a half of the value times 2^f; the same on every machine.
    """
    check_fraction_bits(fraction_bits)
    # A product with a power of two is exact, so there is one rounding only.
    scaled = values.astype(np.float64) * float(1 << fraction_bits)
    np.rint(scaled, out=scaled)
    if scaled.size and not float(np.abs(scaled).max()) < _MAX_MAGNITUDE:
        message = f"values with fraction_bits={fraction_bits} must be finite and below 2^62"
        raise PrivacyError(message)
    return scaled.astype(np.int64)


def from_grid(
    integers: NDArray[np.int64], *, fraction_bits: int, divisor: float = 1.0
) -> NDArray[np.float64]:
    """Give integers / (2^f divisor), (d,), float64.

    Exact for a divisor of 1 and magnitudes below 2^53.

    Raises:
        PrivacyError: if f is out of range or the divisor is not finite and above 0.
    """
    check_fraction_bits(fraction_bits)
    if not 0.0 < divisor < math.inf:
        message = f"divisor={divisor} must be finite and above 0"
        raise PrivacyError(message)
    values = integers.astype(np.float64)
    values /= float(1 << fraction_bits)
    values /= divisor
    return values


def check_sum(*, num_terms: int, norm: int) -> None:
    """Refuse a sum of vectors of norm at most `norm` that might not fit an int64.

    A coordinate is at most the norm, so n of them sum to at most n norm < 2^62; noise of less than
    2^62 on top stays below 2^63.

    Raises:
        PrivacyError: if num_terms * norm is not below 2^62.
    """
    if not num_terms * norm < _MAX_MAGNITUDE:
        message = f"num_terms={num_terms} times norm={norm} must be below 2^62: use fewer bits"
        raise PrivacyError(message)


def check_fraction_bits(fraction_bits: int) -> None:
    """Refuse a number of fraction bits out of range.

    Raises:
        PrivacyError: if it is.
    """
    if not 0 <= fraction_bits <= MAX_FRACTION_BITS:
        message = f"fraction_bits={fraction_bits} must be in 0..{MAX_FRACTION_BITS}"
        raise PrivacyError(message)
