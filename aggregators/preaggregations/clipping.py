"""Norm clipping before a rule: long updates are shrunk to a bound, their directions kept.

The bound is fixed, follows the median of the norms or follows the number of Byzantine updates. For
differential privacy use `privacy.clipping`, whose bound also holds after rounding.
"""

import math
from typing import Final

import numpy as np

from aggregators.dense_rows import RowsLike, as_rows
from aggregators.errors import AggregationError
from aggregators.rows import Floats, Rows
from aggregators.rule import Tolerance

ADAPTIVE_TOLERANCE: Final = Tolerance(per_byzantine=2, base=1)


def static_clipping(rows: RowsLike, *, max_norm: float) -> Rows:
    """Shrink rows to an L2 norm of at most `max_norm`.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        max_norm: C; finite, above 0.

    Returns:
        n rows, shrunk whenever they are read.

    Raises:
        AggregationError: if `max_norm` is out of range or any entry is not finite.

    Guarantees:
        Rows within the bound stay as they are, bit for bit; longer ones get its length, up to
        float32 rounding of their entries, and keep their direction.

    Cost: O(n d) time, O(block) memory.
    References: Sun et al. (2019), arXiv:1911.07963, "norm thresholding of updates".
    """
    matrix = as_rows(rows)
    return matrix.scaled(static_clipping_factors(matrix.norms(), max_norm=max_norm))


def median_clipping(rows: RowsLike, *, factor: float = 1.0) -> Rows:
    """Shrink rows to an L2 norm of at most `factor` times the median of their norms.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        factor: finite, above 0.

    Returns:
        n rows, shrunk whenever they are read.

    Raises:
        AggregationError: if `factor` is out of range or any entry is not finite.

    Guarantees:
        Rows within the bound stay as they are, bit for bit; longer ones get its length, up to
        float32 rounding of their entries, and keep their direction.
        With fewer than half of the rows arbitrary, the bound is at most `factor` times the longest
        of the others.
        Positive scaling of the rows scales the result.

    Cost: O(n d) time, O(block) memory.
    References: Nguyen et al. (2022), arXiv:2101.02281, "adaptive clipping".
    """
    matrix = as_rows(rows)
    return matrix.scaled(median_clipping_factors(matrix.norms(), factor=factor))


def adaptive_clipping(rows: RowsLike, *, num_byzantine: int) -> Rows:
    """Shrink the k = floor(2 f (n - f) / n) longest rows to the length of the next one (ARC).

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        num_byzantine: f, rows that may be arbitrary; n >= 2 f + 1.

    Returns:
        n rows, shrunk whenever they are read.

    Raises:
        TooFewUpdatesError: if n < 2 f + 1.
        AggregationError: if `num_byzantine` is negative or any entry is not finite.

    Guarantees:
        Rows within the bound stay as they are, bit for bit; longer ones get its length, up to
        float32 rounding of their entries, and keep their direction.
        With at most f arbitrary rows, no row ends up longer than the longest of the others.
        With num_byzantine=0 all rows stay as they are.
        Positive scaling of the rows scales the result.

    Cost: O(n d + n log n) time, O(block) memory.
    References: Allouah et al. (2024), arXiv:2405.14432, Algorithm 2 ("ARC").
    """
    matrix = as_rows(rows)
    ADAPTIVE_TOLERANCE.require("adaptive-clipping", matrix.num_rows, num_byzantine)
    return matrix.scaled(adaptive_clipping_factors(matrix.norms(), num_byzantine=num_byzantine))


def static_clipping_factors(norms: Floats, *, max_norm: float) -> Floats:
    """Compute min(1, C / norm) for each row.

    Args:
        norms: (n,), float64, finite, not negative.
        max_norm: C; finite, above 0.

    Returns:
        (n,), float64, in 0..1.

    Raises:
        AggregationError: if `max_norm` is out of range.
    """
    _require_positive("max_norm", max_norm, "static-clipping")
    return _factors(norms, max_norm)


def median_clipping_factors(norms: Floats, *, factor: float = 1.0) -> Floats:
    """Compute min(1, C / norm) for each row, with C of `factor` times the median norm.

    Args:
        norms: (n,), float64, finite, not negative.
        factor: finite, above 0.

    Returns:
        (n,), float64, in 0..1; where the median is zero, zero for all rows that are not.

    Raises:
        AggregationError: if `factor` is out of range.
    """
    _require_positive("factor", factor, "median-clipping")
    return _factors(norms, factor * float(np.median(norms)))


def adaptive_clipping_factors(norms: Floats, *, num_byzantine: int) -> Floats:
    """Compute min(1, C / norm) for each row, with C the (n - k)-th smallest norm.

    Args:
        norms: (n,), float64, finite, not negative.
        num_byzantine: f; n >= 2 f + 1. k = floor(2 f (n - f) / n).

    Returns:
        (n,), float64, in 0..1.

    Raises:
        TooFewUpdatesError: if n < 2 f + 1.
        AggregationError: if `num_byzantine` is negative.
    """
    num_rows = len(norms)
    ADAPTIVE_TOLERANCE.require("adaptive-clipping", num_rows, num_byzantine)
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
