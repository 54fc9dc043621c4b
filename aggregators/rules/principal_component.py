"""The direction in which weighted rows vary most, from their Gram matrix."""

import numpy as np
from numpy.typing import NDArray

from aggregators.rows.gram import Gram

Floats = NDArray[np.float64]


def principal_component(gram: Gram, weights: Floats) -> tuple[float, Floats]:
    """Find the largest eigenvalue of the rows' covariance, and the rows along its eigenvector.

    Args:
        gram: of n rows.
        weights: c, (n,), float64, not negative, not all 0. Rows of weight 0 have no part.

    Returns:
        lambda, the largest eigenvalue of sum_i c_i (x_i - mu) (x_i - mu)^T / sum_i c_i where mu
        is the average by c; and <x_i - mu, v>^2, (n,), with its eigenvector v of length 1: 0 for
        rows of weight 0. Both are 0 where all rows of positive weight are equal. Where the
        largest eigenvalue is not single, v is one of its eigenvectors, the same for the same
        Gram matrix.

    Cost: O(n^3) time, O(n^2) memory.
    """
    members = np.flatnonzero(weights > 0.0)
    projections = np.zeros(gram.num_rows)
    shares = weights[members] / weights[members].sum()
    squared_distances = gram.squared_distances[np.ix_(members, members)]
    largest = float(squared_distances.max())
    if largest == 0.0:
        return 0.0, projections
    # Inner products of the differences from mu, in units of the largest squared distance.
    towards = (squared_distances / largest * shares).sum(axis=1)
    to_center = towards - 0.5 * float((shares * towards).sum())
    inner = 0.5 * (to_center[:, np.newaxis] + to_center - squared_distances / largest)
    roots = np.sqrt(shares)
    values, vectors = np.linalg.eigh(np.multiply.outer(roots, roots) * inner)
    variance = float(values[-1])
    if variance <= 0.0:
        return 0.0, projections
    # With y_i = sqrt(c_i) (x_i - mu) and u the eigenvector of their Gram matrix:
    # v = sum_j u_j y_j / sqrt(lambda).
    along = (inner * (roots * vectors[:, -1])).sum(axis=1)
    projections[members] = along * along / variance * largest
    return variance * largest, projections
