"""Krum: the one update with the closest neighbours."""

import numpy as np
from numpy.typing import NDArray

from aggregators.distances import squared_distances
from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.rows import Rows, RowsLike, as_rows, canonical_order
from aggregators.rule import RuleResult


def krum(rows: RowsLike, *, num_byzantine: int) -> RuleResult:
    """Select the row with the least sum of squared distances to its n - f - 2 nearest others.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        num_byzantine: f, rows that may be arbitrary; n >= 2 f + 3.

    Returns:
        The selected row, and every row's score.

    Raises:
        TooFewUpdatesError: if n < 2 f + 3.
        AggregationError: if `num_byzantine` is negative or any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit: of equal scores the lexicographically least row wins.
        Exact copy of one row.
        With at most f arbitrary rows, the squared distance to the nearest honest row is at most
        (n - f - 2) / (n - 2 f - 1) times the largest between two honest rows.

    Cost: O(n^2 d) time, O(n^2 + block) memory.
    References: Blanchard et al. (2017), arXiv:1703.02757, Section 4.
    """
    matrix = as_rows(rows)
    ranking, scores = rank_by_krum_score(matrix, num_byzantine=num_byzantine)
    winner = ranking[0]
    selected = np.zeros(matrix.num_rows, dtype=np.bool_)
    selected[winner] = True
    return RuleResult(
        vector=matrix.segment(winner, 0, matrix.dim).astype(np.float64),
        weights=selected.astype(np.float64),
        selected=selected,
        scores=scores,
    )


def rank_by_krum_score(rows: Rows, *, num_byzantine: int) -> tuple[list[int], NDArray[np.float64]]:
    """Rank rows from the best score to the worst, ties by value; also return every row's score."""
    num_rows = rows.num_rows
    if num_byzantine < 0:
        message = f"num_byzantine={num_byzantine} must be at least 0"
        raise AggregationError(message)
    if num_rows < 2 * num_byzantine + 3:
        message = f"num_byzantine={num_byzantine} must satisfy n >= 2 * num_byzantine + 3"
        message += f", got n={num_rows}"
        raise TooFewUpdatesError(message)
    order = canonical_order(rows)
    distances = squared_distances(rows.take(order))
    # A row is not its own neighbour, wherever duplicates put it among equals.
    np.fill_diagonal(distances, np.inf)
    distances.sort(axis=1)
    ordered_scores = distances[:, : num_rows - num_byzantine - 2].sum(axis=1)
    scores = np.empty(num_rows, dtype=np.float64)
    scores[order] = ordered_scores
    ranking = [order[i] for i in np.argsort(ordered_scores, kind="stable")]
    return ranking, scores
