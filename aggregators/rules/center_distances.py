"""Distances to a weighted average, from the Gram matrix alone, whatever the outliers."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators.rows.gram import Gram

Floats = NDArray[np.float64]

_MARGIN: Final = 16.0  # inner products are used where they are more exact by at least this factor


def distances_to_center(gram: Gram, weights: Floats) -> Floats:
    """Measure every row's distance to the weighted average of the rows.

    Args:
        gram: of n rows.
        weights: (n,), float64, not negative, sums to 1.

    Returns:
        (n,), float64, not negative: |x_i - sum_j w_j x_j|. The square has an absolute error of a
        few 2**-52 times the lesser of (D w)_i + w D w and 16 (|x_i| + sum_j w_j |x_j|)^2, where
        D holds the squared distances.

    Cost: O(n^2) time and memory.
    """
    towards = (gram.squared_distances * weights).sum(axis=1)
    spread = 0.5 * float((weights * towards).sum())
    squares = towards - spread
    # The distances of a far row i of small weight are about 1 / w_i, their squares cancel to
    # nothing: there the inner products are better, whose errors grow with |x_i| and not with
    # its square.
    norms = gram.norms
    lengths = norms + float((weights * norms).sum())
    coarse = _MARGIN * lengths * lengths < towards + spread
    if coarse.any():
        along = (gram.inner * weights).sum(axis=1)
        by_inner = norms * norms - 2.0 * along + float((weights * along).sum())
        squares = np.where(coarse, by_inner, squares)
    found: Floats = np.sqrt(np.maximum(squares, 0.0))
    return found
