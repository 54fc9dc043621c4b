"""Multi-Krum: the mean of the updates with the best Krum scores."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.registry import require_tolerated
from aggregators.rows.dense_rows import RowsLike
from aggregators.rows.gram import Gram
from aggregators.rows.rows import Rows
from aggregators.rule import Combination, Context, RuleResult, combine_by_gram
from aggregators.rules.krum import krum_scores

_EXACT_BITS: Final = 53  # integers up to 2^53 are exact in float64


def multi_krum(
    rows: RowsLike,
    *,
    num_byzantine: int,
    num_to_select: int | None = None,
    num_neighbours: int | None = None,
) -> RuleResult:
    """Average the m rows with the least Krum scores; scores are computed once.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        num_byzantine: f, rows that may be arbitrary; n >= 2 f + 3.
        num_to_select: m, 1 <= m <= n - f; None: n - f.
        num_neighbours: others whose distances make up a score, 1..n - 1. None: n - f - 2, as in
            the paper.

    Returns:
        The average of the selected rows with equal weights, and every row's score. Self-reported
        sample counts play no part.

    Raises:
        TooFewUpdatesError: if n < 2 f + 3, or m > n - f.
        AggregationError: if another argument is out of range or any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit: of equal scores the lexicographically lesser row
        goes first.
        With num_to_select=1, the same vector as `krum`.

    Cost: O(n^2 d) time, O(n^2 + block) memory.
    References: Blanchard et al. (2017), arXiv:1703.02757, Section 4 ("m-Krum").
    """
    return combine_by_gram(
        rows,
        lambda gram, _: multi_krum_weights(
            gram,
            num_byzantine=num_byzantine,
            num_to_select=num_to_select,
            num_neighbours=num_neighbours,
        ),
    )


def apply(rows: Rows, _: Context, config: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    return multi_krum(
        rows, num_byzantine=config.num_malicious_nodes, num_to_select=config.num_to_select
    )


def pick(
    distances: NDArray[np.int64], num_byzantine: int, num_to_select: int | None
) -> Sequence[int]:
    """Pick members of a shared round by their opened squared distances.

    Distances lose their lowest bits, the same for everybody, until sums of them are exact in
    float64: then no order of additions matters.

    Raises:
        TooFewUpdatesError, AggregationError: as `multi_krum`.
    """
    largest = int(distances.max(initial=0)) * len(distances)
    shift = max(0, largest.bit_length() - _EXACT_BITS)
    squares = (distances >> shift).astype(np.float64)
    inner = (squares[0][:, np.newaxis] + squares[0] - squares) / 2.0
    combination = multi_krum_weights(
        Gram.from_inner(inner), num_byzantine=num_byzantine, num_to_select=num_to_select
    )
    return [int(place) for place in np.flatnonzero(combination.weights)]


def multi_krum_weights(
    gram: Gram,
    *,
    num_byzantine: int,
    num_to_select: int | None = None,
    num_neighbours: int | None = None,
) -> Combination:
    """Give the m rows with the least scores, of equal ones the first, equal weights."""
    require_tolerated("multi-krum", gram.num_rows, num_byzantine)
    most = gram.num_rows - num_byzantine
    count = most if num_to_select is None else num_to_select
    if count < 1:
        message = f"num_to_select={count} of multi-krum must be at least 1"
        raise AggregationError(message)
    if count > most:
        message = f"num_to_select={count} of multi-krum must be in 1..n - num_byzantine={most}"
        raise TooFewUpdatesError(message)
    scores = krum_scores(
        gram.squared_distances, num_byzantine=num_byzantine, num_neighbours=num_neighbours
    )
    weights = np.zeros(gram.num_rows)
    weights[np.argsort(scores, kind="stable")[:count]] = 1.0
    return Combination(weights=weights, total=float(count), scores=scores)
