"""Water filling: weights that fall with distance and are exactly 0 beyond a level."""

import math

import numpy as np
from numpy.typing import NDArray

from aggregators.errors import AggregationError

Floats = NDArray[np.float64]


def water_filling(distances: Floats, lambda_abs: float) -> Floats:
    """Find the weights alpha that minimise sum_i alpha_i d_i + lambda / 2 |alpha|^2.

    Args:
        distances: (n,), float64, finite; d. Not modified.
        lambda_abs: lambda, in the unit of `distances`, finite and at least 0: the larger, the more
            even the weights. At 0 the least distances share all of the weight.

    Returns:
        alpha, (n,), float64: alpha_i = max(eta - d_i, 0) / lambda, with the level eta such that
        they sum to 1.

    Raises:
        AggregationError: if there are no distances, or a number is out of range.

    Guarantees:
        Not negative, sums to 1, falls with distance; equal distances have equal weights.
        Adding one number to every distance, or scaling distances and `lambda_abs` by one factor
        above 0, leaves the weights.

    Cost: O(n log n) time.
    References: Li, Ngai and Voigt (2022), doi:10.1109/TII.2021.3128164, Algorithm 1.
    """
    if distances.ndim != 1 or distances.size == 0 or not np.isfinite(distances).all():
        message = f"distances={distances} of water filling must be n finite numbers, n >= 1"
        raise AggregationError(message)
    if not 0.0 <= lambda_abs < math.inf:
        message = f"lambda_abs={lambda_abs} of water filling must be finite and at least 0"
        raise AggregationError(message)
    # The level depends on differences of distances only; from the least one they lose no digits.
    beyond_least = distances - distances.min()
    if lambda_abs == 0.0:
        heights = (beyond_least == 0.0).astype(np.float64)
    else:
        heights = np.maximum(_level(beyond_least, lambda_abs) - beyond_least, 0.0)
    weights: Floats = heights / heights.sum()
    return weights


def _level(beyond_least: Floats, lambda_abs: float) -> float:
    """Find eta: (sum of the p least distances + lambda) / p, with the largest p it rises above."""
    ascending = np.sort(beyond_least)
    levels = (np.cumsum(ascending) + lambda_abs) / np.arange(1, len(ascending) + 1)
    # Among equal distances the level is above all or none, so the last one above is well defined;
    # the first always is.
    above = np.flatnonzero(levels > ascending)
    return float(levels[above[-1]])
