"""Krum: the one update with the closest neighbours."""

import numpy as np
from numpy.typing import NDArray

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.registry import require_tolerated
from aggregators.rows.dense_rows import RowsLike
from aggregators.rows.gram import Gram
from aggregators.rows.rows import Rows
from aggregators.rule import Combination, Context, RuleResult, combine_by_gram


def krum(rows: RowsLike, *, num_byzantine: int, num_neighbours: int | None = None) -> RuleResult:
    """Select the row with the least sum of squared distances to its nearest others.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        num_byzantine: f, rows that may be arbitrary; n >= 2 f + 3.
        num_neighbours: others whose distances are summed, 1..n - 1. None: n - f - 2, as in the
            paper. Some libraries take n - f - 1.

    Returns:
        The selected row, and every row's score.

    Raises:
        TooFewUpdatesError: if n < 2 f + 3.
        AggregationError: if another argument is out of range or any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit: of equal scores the lexicographically least row wins.
        Exact copy of one row.
        With at most f arbitrary rows and num_neighbours=None, the squared distance to the nearest
        honest row is at most (n - f - 2) / (n - 2 f - 1) times the largest between two honest
        rows.

    Cost: O(n^2 d) time, O(n^2 + block) memory.
    References: Blanchard et al. (2017), arXiv:1703.02757, Section 4.
    """
    return combine_by_gram(
        rows,
        lambda gram, _: krum_weights(
            gram, num_byzantine=num_byzantine, num_neighbours=num_neighbours
        ),
    )


def apply(rows: Rows, _: Context, config: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    return krum(rows, num_byzantine=config.num_malicious_nodes)


def krum_weights(
    gram: Gram, *, num_byzantine: int, num_neighbours: int | None = None
) -> Combination:
    """Give the row with the least score, of equal ones the first, all of the weight."""
    scores = krum_scores(
        gram.squared_distances, num_byzantine=num_byzantine, num_neighbours=num_neighbours
    )
    weights = np.zeros(gram.num_rows)
    weights[int(np.argmin(scores))] = 1.0
    return Combination(weights=weights, scores=scores)


def krum_scores(
    squared_distances: NDArray[np.float64],
    *,
    num_byzantine: int,
    num_neighbours: int | None = None,
) -> NDArray[np.float64]:
    """Sum every row's squared distances to its nearest others.

    Args:
        squared_distances: (n, n), float64, finite, symmetric.
        num_byzantine: f; n >= 2 f + 3.
        num_neighbours: others whose distances are summed, 1..n - 1. None: n - f - 2.

    Returns:
        (n,), float64, not negative.

    Raises:
        TooFewUpdatesError: if n < 2 f + 3.
        AggregationError: if another argument is out of range.
    """
    num_rows = len(squared_distances)
    require_tolerated("krum", num_rows, num_byzantine)
    count = num_rows - num_byzantine - 2 if num_neighbours is None else num_neighbours
    if not 1 <= count <= num_rows - 1:
        message = f"num_neighbours={count} of krum must be in 1..n - 1={num_rows - 1}"
        raise AggregationError(message)
    others = squared_distances.copy()
    # A row is not its own neighbour, wherever duplicates put it among equals.
    np.fill_diagonal(others, np.inf)
    others.sort(axis=1)
    scores: NDArray[np.float64] = others[:, :count].sum(axis=1)
    return scores
