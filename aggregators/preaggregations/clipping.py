"""Norm clipping before a rule: what long updates are multiplied by to be as long as a bound.

The bound follows the median of the norms or the number of Byzantine updates. For
differential privacy use `privacy.clipping`, whose bound also holds after rounding.
"""

import math

import numpy as np

from aggregators.errors import AggregationError
from aggregators.registry import require_tolerated
from aggregators.rows.rows import Floats


def median_clipping_factors(norms: Floats, *, factor: float = 1.0) -> Floats:
    """Compute min(1, C / norm) for each row, with C of `factor` times the median norm.

    With fewer than half of the rows arbitrary, C is at most `factor` times the longest of the
    others.

    Args:
        norms: (n,), float64, finite, not negative.
        factor: finite, above 0.

    Returns:
        (n,), float64, in 0..1; where the median is zero, zero for all rows that are not.

    Raises:
        AggregationError: if `factor` is out of range.

    References: Nguyen et al. (2022), arXiv:2101.02281, "adaptive clipping".
    """
    _require_positive("factor", factor, "median-clipping")
    return _factors(norms, factor * float(np.median(norms)))


def adaptive_clipping_factors(norms: Floats, *, num_byzantine: int) -> Floats:
    """Compute min(1, C / norm) for each row, with C the (n - k)-th smallest norm (ARC).

    With at most f arbitrary rows, C is at most the longest of the others.

    Args:
        norms: (n,), float64, finite, not negative.
        num_byzantine: f; n >= 2 f + 1. k = floor(2 f (n - f) / n).

    Returns:
        (n,), float64, in 0..1.

    Raises:
        TooFewUpdatesError: if n < 2 f + 1.
        AggregationError: if `num_byzantine` is negative.

    References: Allouah et al. (2024), arXiv:2405.14432, Algorithm 2 ("ARC").
    """
    num_rows = len(norms)
    require_tolerated("arc", num_rows, num_byzantine)
    num_clipped = 2 * num_byzantine * (num_rows - num_byzantine) // num_rows
    return _factors(norms, float(np.sort(norms)[num_rows - num_clipped - 1]))


def _factors(norms: Floats, bound: float) -> Floats:
    # Rows within the bound get exactly 1; among them are those of length zero.
    factors = np.ones(len(norms))
    np.divide(bound, norms, out=factors, where=norms > bound)
    return factors


def _require_positive(name: str, value: float, rule: str) -> None:
    if not 0.0 < value < math.inf:
        message = f"{name}={value} of {rule} must be finite and above 0"
        raise AggregationError(message)
