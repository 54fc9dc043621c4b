"""Noise that cancels from round to round: DP-FTRL with a banded lower-triangular Toeplitz matrix.

Let x_t be the exact integer sum of round t, and c a column of b integers, c_0 = 2^12 and
c_j close to c_0 (1/2)(3/4)..((2j - 1)/2j), a truncated square root of the matrix of prefix sums.
Rounds of independent noise would publish x_t + z_t. Here

    v_t = round((Z_t - sum_{j=1}^{b-1} c_j v_{t-j}) / c_0),    published: x_t + v_t,

with Z_t discrete Gaussian of standard deviation |c| s. So C v = Z up to rounding: the noise of a
sum over many rounds largely cancels.

Why it is private. Consider the sequence N_t = sum_j c_j x_{t-j} + Z_t, all integers: the discrete
Gaussian mechanism on the query C x. What is published is a function of it:

    x_t + v_t = round((N_t - sum_{j=1}^{b-1} c_j (x_{t-j} + v_{t-j})) / c_0),

because x_t is an integer and leaves the rounding alone. A device in rounds at least b apart moves
C x along columns that do not overlap, hence by at most |c| S sqrt(k) over k rounds: k rounds cost
what one Gaussian mechanism of multiplier z / sqrt(k) costs, where s = z S. Rounds closer than b
cost more: whoever admits devices must keep them apart.

The clipping norm, the sensitivity and z must stay the same for the whole run.

References: Choquette-Choo et al. (2023), arXiv:2306.08153 (banded matrices); Fichtenberger,
Henzinger and Upadhyay (2023), arXiv:2202.11205 (the coefficients); McMahan et al. (2022),
arXiv:2202.08312 (matrix mechanisms, adaptive streams).
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from privacy.discrete_gaussian import discrete_gaussian
from privacy.errors import PrivacyError
from privacy.keystream import derive_key

Integers: TypeAlias = NDArray[np.int64]
History: TypeAlias = Callable[[int], Integers | None]

MAX_BANDS: Final = 1024

_LABEL: Final = b"banded noise"
_SCALE: Final = 1 << 12  # c_0; coarser coefficients would cancel less, finer ones only cost bits
_MAX_TERMS: Final = 1 << 62


def no_history(_step: int) -> None:
    """Keep nothing: every step is recomputed from the key."""


@dataclass(frozen=True, slots=True)
class BandedNoise:
    """The noise of one run.

    Attributes:
        bands: b, 1 to 1024: a device's rounds must lie at least so far apart. 1: independent noise.
        coefficients: (c_0, .., c_{b-1}).

    Raises:
        PrivacyError: if `bands` is out of range.
    """

    bands: int
    coefficients: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.bands <= MAX_BANDS:
            message = f"bands={self.bands} must be in 1..{MAX_BANDS}"
            raise PrivacyError(message)
        object.__setattr__(self, "coefficients", _coefficients(self.bands))

    @property
    def column_norm(self) -> float:
        """|c|: the sensitivity of C x to one participation of sensitivity 1, rounded up."""
        squared = sum(c * c for c in self.coefficients)
        return math.nextafter(math.sqrt(squared), math.inf)

    def step(
        self,
        step: int,
        key: bytes,
        *,
        stddev: float,
        dim: int,
        history: History = no_history,
    ) -> Integers:
        """Compute v_t.

        Args:
            step: t, from 1; one for each round of the run, in order, none used for two sums.
            key: the run's, 32 secret bytes.
            stddev: s = z S in units of the sum, the same in every step; |c| s is at most 2^48.
            dim: d, the same in every step.
            history: gives v_i of an earlier step, or None where it is not kept.

        Returns:
            (d,), int64.

        Raises:
            PrivacyError: if an argument is out of range, a vector of the history has another
                shape or type, or numbers get too large to be exact.

        Guarantees:
            The same integers on every machine, with any part of the history or without.
            |C v - Z| is at most c_0 / 2 in every coordinate.

        Cost: b vectors with a full history; t b vectors without.
        """
        if step < 1:
            message = f"step={step} must be at least 1"
            raise PrivacyError(message)
        first, recent = self._known_before(step, history, dim)
        for i in range(first, step + 1):
            recent.appendleft(self._next(i, key, stddev=stddev, dim=dim, recent=recent))
        return recent[0]

    def innovation(self, step: int, key: bytes, *, stddev: float, dim: int) -> Integers:
        """Draw Z_t, (d,): discrete Gaussian integers of standard deviation |c| s."""
        step_key = derive_key(key, _LABEL, step, self.bands, dim)
        return discrete_gaussian(step_key, stddev=stddev * self.column_norm, size=dim)

    def _known_before(self, step: int, history: History, dim: int) -> tuple[int, deque[Integers]]:
        """Find the latest step whose b - 1 predecessors are all known; give them, latest first."""
        first, known, i = step, list[Integers](), step - 1
        while i >= 1 and len(known) < self.bands - 1:
            vector = history(i)
            if vector is None:
                first, known = i, []
            elif vector.shape != (dim,) or vector.dtype != np.int64:
                message = (
                    f"history({i}) of {vector.dtype} and shape {vector.shape} must be int64 of"
                    f" shape ({dim},)"
                )
                raise PrivacyError(message)
            else:
                known.append(vector)
            i -= 1
        return first, deque(known, maxlen=max(1, self.bands - 1))

    def _next(
        self, step: int, key: bytes, *, stddev: float, dim: int, recent: deque[Integers]
    ) -> Integers:
        total = self.innovation(step, key, stddev=stddev, dim=dim)
        terms = list(zip(self.coefficients[1:], recent, strict=False))
        bound = _largest(total) + sum(c * _largest(vector) for c, vector in terms)
        if bound >= _MAX_TERMS:
            message = f"step={step}: the noise must stay below 2^62, got up to {bound}"
            raise PrivacyError(message)
        for coefficient, vector in terms:
            total -= coefficient * vector
        # Rounds to the nearest: c_0 is a power of two, and the shift rounds down.
        total += _SCALE // 2
        total >>= _SCALE.bit_length() - 1
        return total


def _coefficients(bands: int) -> tuple[int, ...]:
    # (1/2)(3/4)..((2j - 1) / 2j) = binomial(2j, j) / 4^j.
    return tuple((2 * _SCALE * math.comb(2 * j, j) + 4**j) // (2 * 4**j) for j in range(bands))


def _largest(vector: Integers) -> int:
    return max(int(vector.max()), -int(vector.min())) if vector.size else 0
