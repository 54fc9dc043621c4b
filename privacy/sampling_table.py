"""What the discrete Gaussian sampler looks up for one standard deviation, as fixed integers.

Made in decimal arithmetic of 50 digits, whose exponential is correctly rounded: the same integers
on every machine.
"""

import math
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from functools import lru_cache
from itertools import accumulate, count, takewhile
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.errors import PrivacyError

Words = NDArray[np.uint64]

MIN_STDDEV: Final = 2.0**-4
MAX_STDDEV: Final = 2.0**48

_DECIMAL: Final = Context(prec=50)
_NEGLIGIBLE: Final = Decimal("1e-40")
_WORD: Final = Decimal(1 << 64)
_LEAST_STEPS_BITS: Final = 4  # a step is at most a 16th of the standard deviation
_GUIDE_BITS: Final = 8
_NUM_CELLS: Final = 256  # the exponent stays below 1, its cells are 2^-8 wide


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SamplingTable:
    """The proposal |x| = k 2^m + u, and what decides whether it is accepted.

    Attributes:
        thresholds: 2^64 P(steps <= k) for k = 0, 1, .. as long as it is below 2^64, rounded.
        guide: (256,): of every top byte of a word, the least k that it may mean.
        slopes: 2^64 2 k c, c = 2^(2 m) / (2 stddev^2), for k up to and with the last; 0 for m = 0.
        curvature: 2^64 c; 0 for m = 0.
        step_bits: m.
        mask: 2^m - 1.
        fraction_shift: 63 - m: with one bit more it turns u into a fraction of 2^64.
        exps: (256,): 2^63 e^(-a / 256).
    """

    thresholds: Words
    guide: NDArray[np.int64]
    slopes: Words
    curvature: np.uint64
    step_bits: np.uint64
    mask: np.uint64
    fraction_shift: np.uint64
    exps: Words

    @property
    def largest(self) -> int:
        """The largest magnitude that can come out."""
        return ((len(self.thresholds) + 1) << int(self.step_bits)) - 1


@lru_cache(maxsize=64)
def sampling_table(stddev: float) -> SamplingTable:
    """Make the table of one standard deviation.

    Raises:
        PrivacyError: if it is not in 2^-4..2^48.
    """
    if not MIN_STDDEV <= stddev <= MAX_STDDEV:
        message = f"stddev={stddev} must be in {MIN_STDDEV}..2^48"
        raise PrivacyError(message)
    step_bits = max(0, math.frexp(stddev)[1] - 1 - _LEAST_STEPS_BITS)
    numerator, denominator = stddev.as_integer_ratio()
    with localcontext(_DECIMAL):
        # c = t^2 / (2 stddev^2), of exact integers.
        rate = Decimal((denominator << step_bits) ** 2) / Decimal(2 * numerator * numerator)
        thresholds = _thresholds(rate)
        scale = _WORD if step_bits else Decimal(0)
        slopes = [round(2 * k * rate * scale) for k in range(len(thresholds) + 1)]
        curvature = round(rate * scale)
    return SamplingTable(
        thresholds=np.array(thresholds, np.uint64),
        guide=_guide(thresholds),
        slopes=np.array(slopes, np.uint64),
        curvature=np.uint64(curvature),
        step_bits=np.uint64(step_bits),
        mask=np.uint64((1 << step_bits) - 1),
        fraction_shift=np.uint64(63 - step_bits),
        exps=_exps(),
    )


def _thresholds(rate: Decimal) -> list[int]:
    exps = ((Decimal(-k * k) * rate).exp() for k in count())
    weights = list(takewhile(lambda weight: weight > _NEGLIGIBLE, exps))
    total = sum(weights, Decimal(0))
    rounded = (round(part / total * _WORD) for part in accumulate(weights))
    return list(takewhile(lambda threshold: threshold < 1 << 64, rounded))


def _guide(thresholds: list[int]) -> NDArray[np.int64]:
    lows = np.arange(1 << _GUIDE_BITS, dtype=np.uint64) << np.uint64(64 - _GUIDE_BITS)
    steps = np.searchsorted(np.array(thresholds, np.uint64), lows, side="right")
    return steps.astype(np.int64)


@lru_cache(maxsize=1)
def _exps() -> Words:
    with localcontext(_DECIMAL):
        cells = ((Decimal(-a) / _NUM_CELLS).exp() for a in range(_NUM_CELLS))
        return np.array([round(cell * (1 << 63)) for cell in cells], np.uint64)
