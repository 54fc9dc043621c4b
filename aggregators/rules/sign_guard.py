"""SignGuard: the mean of the updates of usual length whose signs are distributed as most are."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.preaggregations.clipping import median_clipping_factors
from aggregators.rows.dense_rows import RowsLike, as_rows
from aggregators.rows.rows import Floats, Rows, canonical_order
from aggregators.rule import Combination, Context, RuleResult, combine_in_order

MIN_NORM_RATIO: Final = 0.1
MAX_NORM_RATIO: Final = 3.0
"""Norms kept, as multiples of the median norm: Xu et al. (2022), Section V."""

_MIN_RUNS: Final = 64  # up to 4096 coordinates are all counted
_RUN: Final = 64  # coordinates sampled together: 256 bytes of each row
_MAX_RUN: Final = 4096
_RUNS: Final = 4096  # about as many runs are drawn from; more would cost a read each

_NEIGHBOURS: Final = 0.5  # quantile of the distances that sets the bandwidth
_LEAST_BANDWIDTH: Final = 1e-9  # fractions of countable coordinates differ by more, or not at all
_RADIUS_SLACK: Final = 1e-9  # points at the bandwidth's distance are within it, up to rounding
_STOP_SHARE: Final = 1e-3  # a mode has converged once it moves by less of the bandwidth
_MAX_STEPS: Final = 300


def sign_guard(rows: RowsLike, *, sample_fraction: float = 0.1, seed: int) -> RuleResult:
    """Average the rows of usual norm and signs, clipped to the median norm.

    Keeps rows of 0.1 to 3 times the median norm; clusters them by their shares of positive, zero
    and negative coordinates, by mean shift; averages the largest cluster.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        sample_fraction: share of the coordinates whose signs are counted, above 0, at most 1.
        seed: at least 0; decides which coordinates are sampled.

    Returns:
        The average of the kept rows with equal weights, less where a row was clipped, and the
        distance of every row's shares to the mode of the largest cluster.

    Raises:
        AggregationError: if another argument is out of range or any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit.
        The norm of the result is at most the median norm, up to rounding.
        Keeps at least one row; keeps every row if all are equal.

    Cost: O(n d + steps n^2) time, O(n^2 + block) memory.
    References: Xu et al. (2022), arXiv:2109.05872, Algorithm 2. There all rows are clustered and
        the cluster is intersected with the rows of usual norm; here only those are clustered, so
        that rows already out cannot shift the clusters, and something is always kept.
    """
    matrix = as_rows(rows)
    order = canonical_order(matrix)
    ordered = matrix.take(order)
    norms = ordered.norms()
    fractions = sign_fractions(ordered, sample_fraction=sample_fraction, seed=seed)
    return combine_in_order(matrix, order, sign_guard_weights(norms, fractions))


def apply(rows: Rows, context: Context, _: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    return sign_guard(rows, seed=context.seed)


def sign_guard_weights(norms: Floats, fractions: Floats) -> Combination:
    """Weigh rows by their norms and shares of signs.

    Args:
        norms: (n,), float64, finite.
        fractions: (n, 3), float64: see `sign_fractions`.
    """
    median = float(np.median(norms))
    usual = (norms >= MIN_NORM_RATIO * median) & (norms <= MAX_NORM_RATIO * median)
    points = fractions[usual]
    labels, modes = mean_shift(points, neighbour_bandwidth(points))
    largest = int(np.argmax(np.bincount(labels)))
    weights = np.zeros(len(norms))
    weights[usual] = labels == largest
    kept = float(weights.sum())
    return Combination(
        weights=weights * median_clipping_factors(norms),
        total=kept,
        scores=_distances(modes[largest : largest + 1], fractions)[0],
    )


def sign_fractions(rows: RowsLike, *, sample_fraction: float = 0.1, seed: int) -> Floats:
    """Count every row's positive, zero and negative coordinates in one sample of coordinates.

    Coordinates are sampled in runs of 64 to 4096, longer for longer rows, because neighbours cost
    little to read. At least 64 runs are counted, so up to 4096 coordinates are all counted.

    Args:
        rows: (n, d), float32, finite. Not modified.
        sample_fraction: share of the runs that is sampled, above 0, at most 1.
        seed: at least 0; decides which runs.

    Returns:
        (n, 3), float64: shares of positive, zero and negative coordinates; each row sums to 1.

    Raises:
        AggregationError: if another argument is out of range.

    Guarantees:
        Permuting rows permutes the result, bit for bit.
        Equal arguments give equal samples.

    Cost: O(n d) time times `sample_fraction`, O(n) memory.
    """
    if not 0.0 < sample_fraction <= 1.0:
        message = f"sample_fraction={sample_fraction} must be above 0 and at most 1"
        raise AggregationError(message)
    if seed < 0:
        message = f"seed={seed} must be at least 0"
        raise AggregationError(message)
    matrix = as_rows(rows)
    counts = np.zeros((matrix.num_rows, 3))
    for start, stop in _sampled_runs(matrix.dim, sample_fraction, seed):
        values = matrix.read(start, stop)
        positive = np.count_nonzero(values > 0.0, axis=1)
        negative = np.count_nonzero(values < 0.0, axis=1)
        counts[:, 0] += positive
        counts[:, 1] += (stop - start) - positive - negative
        counts[:, 2] += negative
    fractions: Floats = counts / counts[0].sum()
    return fractions


def neighbour_bandwidth(points: Floats) -> float:
    """Average over the points the distance to the furthest of their nearest half.

    Args:
        points: (m, 3), float64. A point is its own nearest neighbour, so the half is never less
            than two points, or every point would be alone.
    """
    count = min(len(points), max(2, int(_NEIGHBOURS * len(points))))
    distances = _distances(points, points)
    distances.partition(count - 1, axis=1)
    return float(distances[:, count - 1].mean())


def mean_shift(points: Floats, bandwidth: float) -> tuple[NDArray[np.intp], Floats]:
    """Cluster points by the mode that each reaches when it moves to the mean of what is near.

    Args:
        points: (m, 3), float64, shares; m at least 1.
        bandwidth: how near, not negative.

    Returns:
        (m,): the index of each point's nearest mode; and the modes, those reached over the most
        points first. Of two modes within the bandwidth only the first is one.

    Cost: O(steps m^2) time, O(m^2) memory.
    References: Comaniciu and Meer (2002), doi:10.1109/34.1000236, with a flat kernel.
    """
    radius = max(bandwidth, _LEAST_BANDWIDTH)
    modes, sizes = _climb(points, radius)
    first = np.lexsort((-modes[:, 2], -modes[:, 1], -modes[:, 0], -sizes))
    modes = modes[first]
    near = _distances(modes, modes) <= radius * (1.0 + _RADIUS_SLACK)
    kept: list[int] = []
    for place in range(len(modes)):
        if not near[place, kept].any():
            kept.append(place)
    labels: NDArray[np.intp] = np.argmin(_distances(points, modes[kept]), axis=1)
    return labels, modes[kept]


def _climb(points: Floats, radius: float) -> tuple[Floats, NDArray[np.intp]]:
    """Move a copy of each point to the mean of the points around it until it stays."""
    modes = points.copy()
    sizes = np.ones(len(points), dtype=np.intp)
    moving = np.arange(len(points))
    for _ in range(_MAX_STEPS):
        near = _distances(modes[moving], points) <= radius * (1.0 + _RADIUS_SLACK)
        sizes[moving] = near.sum(axis=1)
        sums = [np.where(near, column, 0.0).sum(axis=1) for column in points.T]
        moved = np.stack(sums, axis=1) / sizes[moving, np.newaxis]
        steps = np.sqrt(np.square(moved - modes[moving]).sum(axis=1))
        modes[moving] = moved
        moving = moving[steps > _STOP_SHARE * radius]
        if moving.size == 0:
            break
    return modes, sizes


def _distances(first: Floats, second: Floats) -> Floats:
    squares = np.zeros((len(first), len(second)))
    for ours, theirs in zip(first.T, second.T, strict=True):
        squares += np.square(ours[:, np.newaxis] - theirs)
    return np.sqrt(squares)


def _sampled_runs(dim: int, sample_fraction: float, seed: int) -> list[tuple[int, int]]:
    """Draw runs of coordinates, in ascending order."""
    run = min(max(_RUN, dim // _RUNS), _MAX_RUN)
    starts = np.arange(0, dim, run)
    count = min(len(starts), max(_MIN_RUNS, round(sample_fraction * len(starts))))
    generator = np.random.Generator(np.random.Philox(seed))
    drawn = np.sort(generator.permutation(len(starts))[:count])
    return [(int(start), min(int(start) + run, dim)) for start in starts[drawn]]
