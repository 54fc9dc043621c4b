"""FLAME: average the largest group of like directions, its lengths clipped to the median."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators.config import AggregatorConfig
from aggregators.rows.dense_rows import RowsLike
from aggregators.rows.gram import Gram
from aggregators.rows.rows import Rows
from aggregators.rule import Combination, Context, RuleResult, combine_by_gram

Floats = NDArray[np.float64]

_TIE: Final = 2.0**-40


def flame(rows: RowsLike) -> RuleResult:
    """Admit the majority that single linkage joins first by cosine; clip it; average it.

    FLAME's last step, Gaussian noise in proportion to the clipping norm, is not taken here: noise
    belongs to the layer that accounts for it.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.

    Returns:
        The average over the admitted rows, each shrunk to the median of all rows' norms. The
        score of a row is the cosine distance, 0 to 2, at which it joins the majority; admitted
        are the least. A row of zeros has no direction: its distance to any other is 1. Every row
        has an equal vote; self-reported sample counts play no part.

    Raises:
        AggregationError: if any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit.
        Admits more than half of the rows.
        At most as long as the median norm.
        With fewer than half of the rows arbitrary, no longer than the longest of the others.
        Scaling a row leaves who is admitted, up to rounding.

    Cost: O(n^2 d) time, O(n^2 + block) memory.
    References: Nguyen et al. (2022), arXiv:2101.02281, Algorithm 1, lines 5 to 12.
    """
    return combine_by_gram(rows, lambda gram, _: flame_weights(gram))


def apply(rows: Rows, _context: Context, _config: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    return flame(rows)


def flame_weights(gram: Gram) -> Combination:
    """Weigh the admitted rows by their clipping factors; scores are the joining distances."""
    joined_at = joining_distances(cosine_distances(gram))
    # Rounding must not part rows that join at one distance.
    admitted = joined_at <= joined_at.min() * (1.0 + _TIE)
    norms = gram.norms
    clip_norm = float(np.median(norms))
    beyond = norms > clip_norm
    factors = np.where(beyond, clip_norm / np.where(beyond, norms, 1.0), 1.0)
    return Combination(
        weights=np.where(admitted, factors, 0.0),
        total=float(np.count_nonzero(admitted)),
        scores=joined_at,
    )


def cosine_distances(gram: Gram) -> Floats:
    """Compute 1 - cos of every two rows, (n, n); 1 for a row of zeros and any other row."""
    norms = gram.norms
    empty = norms == 0.0
    lengths = np.where(empty, 1.0, norms)
    gaps = norms[:, np.newaxis] - norms
    # Divided by one length after the other: their product underflows or overflows first.
    parts = gram.squared_distances / lengths / lengths[:, np.newaxis]
    gaps = gaps / lengths * (gaps / lengths[:, np.newaxis])
    cosines = gram.inner / lengths / lengths[:, np.newaxis]
    # (|x - y|^2 - (|x| - |y|)^2) / (2 |x| |y|) keeps the digits of like directions that 1 - cos
    # loses; where |x - y|^2 is above |x| |y| it is the other way round.
    distances: Floats = np.where(parts < 1.0, 0.5 * (parts - gaps), 1.0 - cosines)
    np.clip(distances, 0.0, 2.0, out=distances)
    distances = np.maximum(distances, distances.T)
    distances[empty, :] = 1.0
    distances[:, empty] = 1.0
    np.fill_diagonal(distances, 0.0)
    return distances


def joining_distances(distances: Floats) -> Floats:
    """Find the distance at which single linkage joins every row to the first majority.

    HDBSCAN with a least cluster size above n / 2, a neighbourhood of one and a single cluster
    allowed never splits: walking down the tree of single linkage, it follows the branch that
    holds more than half of the rows, and where there is none, keeps all rows joined at that
    distance. Those are the rows of the first component of more than n / 2 rows to form as the
    distance grows.

    Args:
        distances: (n, n), float64, symmetric, zero on the diagonal.

    Returns:
        (n,), float64: the least value is the distance at which the majority forms, and its rows
        are those that have it.
    """
    bottlenecks = _bottlenecks(distances)
    majority = len(distances) // 2
    formed_at = np.sort(bottlenecks, axis=1)[:, majority]
    member = int(np.argmin(formed_at))
    joined_at: Floats = np.maximum(bottlenecks[member], formed_at[member])
    return joined_at


def _bottlenecks(distances: Floats) -> Floats:
    """Find, for every two rows, the least longest step of a path between them.

    Along the tree Prim's algorithm grows: a row's path to any earlier one leads through its edge.
    """
    num_rows = len(distances)
    found = np.zeros_like(distances)
    nearest = distances[0].copy()
    parents = np.zeros(num_rows, dtype=np.intp)
    outside = np.ones(num_rows, dtype=np.bool_)
    outside[0] = False
    inside = [0]
    for _ in range(num_rows - 1):
        row = int(np.argmin(np.where(outside, nearest, np.inf)))
        steps = np.maximum(found[parents[row], inside], nearest[row])
        found[row, inside] = steps
        found[inside, row] = steps
        outside[row] = False
        inside.append(row)
        closer = distances[row] < nearest
        nearest[closer] = distances[row][closer]
        parents[closer] = row
    return found
