"""The discrete Gaussian distribution: integers x with probability in proportion to e^(-x^2/2s^2).

Sampled by rejection from uniform steps. With t = 2^m, a power of two at most a 16th of the
standard deviation s (1 where s is below 32), an attempt takes three words of 64 bits:

1. k = 0, 1, .. with probability in proportion to e^(-(k t)^2 / 2 s^2), by a table;
2. u = 0 .. t - 1 and a sign, uniform; |x| = k t + u;
3. x is accepted with probability e^(-(2 k t u + u^2) / 2 s^2), "-0" never.

An accepted x then has the right distribution: the factors of steps 1 and 3 multiply to
e^(-x^2 / 2 s^2). More than 95 % of the attempts are accepted where t > 1.

What is not exact, all of it in integers and therefore the same on every machine:
- The table's thresholds are rounded to 2^-64: each k is off by at most 2^-64, and there are
  at most 320 of them; what lies beyond the last threshold, 2^-65 or less, goes to the last k.
- The exponent of step 3 is off by at most 3 2^-64, its exponential by at most 4 2^-64 more: the
  probability of accepting by less than 2^-61.
So the unnormalised distribution is off by at most (320 + 8) 2^-64 in sum; divided by the
acceptance rate (0.5 or more, with less than 20 values of k, where t = 1 and s < 1; else above
0.7) the total variation distance is below 2^-55.

References: Canonne, Kamath and Steinke (2020), arXiv:2004.00010, for the distribution and its
privacy; Karney (2016), arXiv:1303.6257, and Ducas et al. (2013), eprint 2013/383, for sampling by
uniform steps.
"""

from functools import cache
from importlib import import_module
from typing import Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from privacy.errors import PrivacyError
from privacy.keystream import Keystream, Words
from privacy.sampling_table import MAX_STDDEV, MIN_STDDEV, SamplingTable, sampling_table

__all__ = ["MAX_DISTANCE", "MAX_STDDEV", "MIN_STDDEV", "discrete_gaussian"]

MAX_DISTANCE: Final = 2.0**-55
"""Bound of the total variation distance of one sample; d samples: d times as much."""

COMPILED: Final = "privacy.compiled_sampling"
PLAIN: Final = "privacy.plain_sampling"

_STEP_ATTEMPTS: Final = 1 << 13
_WORDS_PER_ATTEMPT: Final = 3


class Sampler(Protocol):
    """What both modules offer."""

    NAME: str

    def attempt(self, out: NDArray[np.int64], words: Words, table: SamplingTable) -> int:
        """Make one attempt of every three words; write what is accepted until `out` is full."""
        ...


def discrete_gaussian(key: bytes, *, stddev: float, size: int) -> NDArray[np.int64]:
    """Draw a vector of independent discrete Gaussian integers.

    Args:
        key: 32 secret bytes that serve nothing else; see `privacy.keystream.derive_key`.
        stddev: s, 2^-4 to 2^48. The variance is s^2 within 1e-6 of it where s >= 1; less below.
        size: how many, from 0.

    Returns:
        (size,), int64.

    Raises:
        PrivacyError: if an argument is out of range.

    Guarantees:
        The distribution of each integer is within `MAX_DISTANCE` of the discrete Gaussian, in
        total variation, if the words of the key are uniform (AES-256 as a random function). For
        a mechanism on d coordinates add d MAX_DISTANCE (1 + e^epsilon) to its delta.
        The same key, s and size give the same integers on every machine, compiled or not; a
        smaller size gives the first of them.
        No magnitude exceeds 10 s + 1.

    Cost: about 3.1 words of keystream each; 20 ns each where it is compiled, some ten times as
        much where it is not. The time tells how many attempts were rejected, not which.
    """
    if size < 0:
        message = f"size={size} must be at least 0"
        raise PrivacyError(message)
    table = sampling_table(float(stddev))
    stream = Keystream(key)
    attempt = sampler().attempt
    out = np.empty(size, np.int64)
    words = np.empty(_STEP_ATTEMPTS * _WORDS_PER_ATTEMPT, np.uint64)
    written = 0
    while written < size:
        missing = size - written
        attempts = min(_STEP_ATTEMPTS, missing + 64)
        part = words[: attempts * _WORDS_PER_ATTEMPT]
        stream.read_into(part)
        written += attempt(out[written:], part, table)
    return out


@cache
def sampler() -> Sampler:
    """Load the compiled attempts, or the plain ones where there is no compiler."""
    try:
        return cast("Sampler", import_module(COMPILED))
    except ImportError:
        return cast("Sampler", import_module(PLAIN))
