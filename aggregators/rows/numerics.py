"""Sums that do not depend on the order of their terms.

Binned summation with two lanes (the idea of ReproBLAS; Ahrens, Demmel and Nguyen 2020,
"Algorithms for efficient reproducible floating point summation"): every term is split into a
multiple of a coarse quantum, a multiple of a fine quantum, and a rest that is dropped. The quanta
are chosen so that any partial sum of a lane is exact, hence addition is associative. The quanta
follow from the largest magnitude of each column and the number of terms, neither of which depends
on the order, so every finite float32 is in range.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators.errors import AggregationError

MAX_TERMS: Final = 1 << 20
MAX_WEIGHT: Final = 2.0**53
MIN_WEIGHT: Final = 2.0**-512
"""Smallest weight above zero; with `MAX_WEIGHT` it keeps the quanta of float32 rows in range."""

_MANTISSA_BITS: Final = 52  # stored bits of a float64


def order_free_sum(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum each column; permuting the rows leaves every bit of the result.

    Args:
        terms: (n, b), float64, finite, magnitudes below 2**900, n at most `MAX_TERMS`.
            Overwritten.

    Returns:
        (b,), float64; zeros are positive.

    Raises:
        AggregationError: if `n` exceeds `MAX_TERMS`.

    Guarantees:
        Invariant to row order, bit for bit.
        With n at most 1024 the error is at most 2**-74 of the column's largest magnitude, plus
        one rounding of the result: exact before that rounding for float32 terms that span up to
        60 binary orders of magnitude.

    Cost: O(n b) time, one temporary of the size of `terms`.
    """
    num_terms = terms.shape[0]
    if num_terms > MAX_TERMS:
        message = f"n={num_terms} must be at most {MAX_TERMS}"
        raise AggregationError(message)
    # n multiples k * q of a quantum q, each |k| <= 2**lane_bits, sum to at most 2**52 * q: exact.
    lane_bits = _MANTISSA_BITS - max(1, (num_terms - 1).bit_length())
    largest = np.maximum(terms.max(axis=0), -terms.min(axis=0))
    exponents = np.frexp(largest)[1] - lane_bits
    scratch = np.empty_like(terms)
    high = _lane_sum(terms, exponents, scratch)
    np.subtract(terms, scratch, out=terms)
    low = _lane_sum(terms, exponents - lane_bits, scratch)
    total: NDArray[np.float64] = high + low
    return total


def _lane_sum(
    terms: NDArray[np.float64], exponents: NDArray[np.intc], scratch: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Round terms to multiples of 2**exponent, left in `scratch`; return their exact sum.

    Adding and subtracting 1.5 * 2**52 quanta rounds to a multiple of the quantum, provided that
    the processor rounds to nearest and nothing reorders the two operations.
    """
    shift = np.ldexp(1.5, exponents + _MANTISSA_BITS)
    np.add(terms, shift, out=scratch)
    np.subtract(scratch, shift, out=scratch)
    lane: NDArray[np.float64] = scratch.sum(axis=0)
    return lane
