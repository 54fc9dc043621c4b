"""Bulyan: Krum again and again, then the mean around the median of the rows it chose."""

import numpy as np
from numpy.typing import NDArray

from aggregators.config import AggregatorConfig
from aggregators.registry import require_tolerated
from aggregators.rows.dense_rows import RowsLike, as_rows
from aggregators.rows.gram import Gram
from aggregators.rows.rows import Rows, canonical_order
from aggregators.rule import Context, RuleResult
from aggregators.rules.krum import krum_scores


def bulyan(rows: RowsLike, *, num_byzantine: int, rescore: bool = True) -> RuleResult:
    """Select n - 2 f rows by Krum and average each coordinate's n - 4 f values nearest its median.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        num_byzantine: f, rows that may be arbitrary; n >= 4 f + 3.
        rescore: score the rows that are left anew after each selection, as in the paper. False:
            take the n - 2 f best scores of one Krum, as some libraries do.

    Returns:
        The aggregate; the selected rows have an equal vote in every coordinate. The scores are
        those of Krum on all rows. Self-reported sample counts play no part.

    Raises:
        TooFewUpdatesError: if n < 4 f + 3.
        AggregationError: if `num_byzantine` is negative or any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit: of equal scores the lexicographically least row is
        selected.
        With at most f arbitrary rows, every output coordinate lies within the range of the
        others, widened on either side by the width of that range.

    Cost: O(n^2 d) for the distances, O(n^3) simple steps for the selection, O(n d log^2 n) for the
        coordinates; O(n^2 + block) memory.
    References: El Mhamdi, Guerraoui and Rouault (2018), arXiv:1802.07927, "Bulyan(A)" with
        A = Krum.
    """
    matrix = as_rows(rows)
    require_tolerated("bulyan", matrix.num_rows, num_byzantine)
    order = canonical_order(matrix)
    gram = matrix.gram()
    ordered = gram.take(order)
    chosen = sorted(bulyan_selection(ordered, num_byzantine, rescore=rescore))
    selected = np.zeros(matrix.num_rows, dtype=np.bool_)
    picked = [order[place] for place in chosen]
    selected[picked] = True
    scores = np.empty(matrix.num_rows)
    scores[order] = krum_scores(ordered.squared_distances, num_byzantine=num_byzantine)
    return RuleResult(
        vector=matrix.take(picked).mean_around_median(matrix.num_rows - 4 * num_byzantine),
        weights=selected / len(picked),
        selected=selected,
        scores=scores,
        gram=gram,
    )


def apply(rows: Rows, _: Context, config: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    return bulyan(rows, num_byzantine=config.num_malicious_nodes)


def bulyan_selection(gram: Gram, num_byzantine: int, *, rescore: bool = True) -> list[int]:
    """Select n - 2 f rows by Krum.

    With m rows left, the row with the least sum of squared distances to its max(1, m - f - 2)
    nearest others among them goes next, of equal ones the first.

    Args:
        gram: of n rows; n >= 4 f + 3.
        num_byzantine: f.
        rescore: False: the n - 2 f least scores of one Krum, best first.

    Returns:
        n - 2 f different row indices in the order in which they were selected.

    Raises:
        TooFewUpdatesError: if n < 4 f + 3.
        AggregationError: if `num_byzantine` is negative.

    Cost: O(n^3) additions in vectors of n, O(n^2) memory.
    """
    distances = gram.squared_distances
    require_tolerated("bulyan", len(distances), num_byzantine)
    num_selected = len(distances) - 2 * num_byzantine
    if not rescore:
        scores = krum_scores(distances, num_byzantine=num_byzantine)
        best: list[int] = np.argsort(scores, kind="stable")[:num_selected].tolist()
        return best
    selected = _select_by_sums(distances, num_byzantine, num_selected)
    return _select_by_nearest(distances, selected, num_selected)


def _select_by_sums(
    distances: NDArray[np.float64], num_byzantine: int, num_selected: int
) -> list[int]:
    """Select while scores are sums over two neighbours or more.

    Column i of `terms` holds the distances of row i to the others, the nearest first, with zeros
    for all that do not count. A selection zeroes one term per column: the selected row's own where
    it counted, else the farthest that did. Scores are summed anew each time: taking terms off
    running sums would leave the rounding errors of terms that are long gone. The sum runs down the
    columns one by one, so zeros do not change how it rounds and equal distances make equal scores.
    """
    num_rows = len(distances)
    others = distances.copy()
    np.fill_diagonal(others, np.inf)
    nearest = np.argsort(others, axis=1, kind="stable").T.copy()
    terms = np.take_along_axis(others, nearest, axis=0)
    places = np.empty_like(nearest)  # places[j, i]: how many others are nearer to i than j
    columns = np.arange(num_rows)
    np.put_along_axis(places, nearest, columns[:, np.newaxis], axis=0)
    count = num_rows - num_byzantine - 2
    terms[count:] = 0.0
    last = np.full(num_rows, count - 1)
    is_gone = np.zeros(num_rows, dtype=np.bool_)
    selected: list[int] = []
    while len(selected) < num_selected and count > 1:
        scores = terms[: int(last.max()) + 1].sum(axis=0)
        scores[is_gone] = np.inf
        chosen = int(np.argmin(scores))
        selected.append(chosen)
        is_gone[chosen] = True
        terms[np.minimum(places[chosen], last), columns] = 0.0
        count -= 1
        # The column's last term that counts moves up past rows that are gone.
        last[places[chosen] >= last] -= 1
        while (stale := is_gone[nearest[last, columns]]).any():
            last[stale] -= 1
    return selected


def _select_by_nearest(
    distances: NDArray[np.float64], selected: list[int], num_selected: int
) -> list[int]:
    """Go on selecting where a score is the distance to the one nearest other row that is left."""
    selected = list(selected)
    left = [row for row in range(len(distances)) if row not in set(selected)]
    while len(selected) < num_selected:
        others = distances[np.ix_(left, left)]
        np.fill_diagonal(others, np.inf)
        selected.append(left.pop(int(np.argmin(others.min(axis=1)))))
    return selected
