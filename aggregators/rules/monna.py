"""MoNNA: the mean of the updates nearest to one that is trusted."""

import numpy as np

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.registry import require_tolerated
from aggregators.rows.dense_rows import RowsLike, as_rows
from aggregators.rows.gram import Gram
from aggregators.rows.rows import Rows, Vector, canonical_order
from aggregators.rule import Combination, Context, RuleResult, combine_in_order, needed


def monna(rows: RowsLike, *, num_byzantine: int, pivot: Vector) -> RuleResult:
    """Average the n - f rows nearest to a vector that is known to be honest.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        num_byzantine: f, rows that may be arbitrary; n >= 2 f + 1.
        pivot: (d,), float32, finite: the trusted vector, such as an update the server computed
            itself. It is not averaged, except as far as it is also one of the rows. In the
            paper, where peers aggregate for themselves, it is the peer's own row.

    Returns:
        The average of the nearest rows with equal weights; scores are squared distances to the
        pivot. Self-reported sample counts play no part.

    Raises:
        TooFewUpdatesError: if n < 2 f + 1.
        AggregationError: if another argument is out of range or any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit: of rows equally near the lexicographically lesser is
        kept.
        With at most f arbitrary rows, the result is no farther from the pivot than the farthest
        of the others.

    Cost: O(n^2 d) time, O(n^2 + block) memory.
    References: Farhadkhani et al. (2023), arXiv:2209.10931, "nearest-neighbor averaging".
    """
    matrix = as_rows(rows)
    num_rows = matrix.num_rows
    require_tolerated("monna", num_rows, num_byzantine)
    if pivot.shape != (matrix.dim,) or pivot.dtype != np.float32:
        message = f"pivot of shape {pivot.shape} and type {pivot.dtype} of monna must be float32"
        message += f" of shape (d,)=({matrix.dim},)"
        raise AggregationError(message)
    order = canonical_order(matrix)
    gram = matrix.extended(pivot).gram()
    weights = monna_weights(gram.take([*order, num_rows]), num_byzantine=num_byzantine)
    return combine_in_order(matrix, order, weights, gram=gram.take(range(num_rows)))


def apply(rows: Rows, context: Context, config: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    return monna(
        rows,
        num_byzantine=config.num_malicious_nodes,
        pivot=needed(context.root_update, "root_update"),
    )


def monna_weights(gram_with_pivot: Gram, *, num_byzantine: int) -> Combination:
    """Give the n - f rows nearest to the pivot, of equally near ones the first, equal weights.

    Args:
        gram_with_pivot: of n + 1 rows, the pivot last.
        num_byzantine: f; n >= 2 f + 1.

    Returns:
        The weights of the first n rows.

    Raises:
        TooFewUpdatesError: if n < 2 f + 1.
        AggregationError: if `num_byzantine` is negative.
    """
    num_rows = gram_with_pivot.num_rows - 1
    require_tolerated("monna", num_rows, num_byzantine)
    scores = gram_with_pivot.squared_distances[-1, :-1].copy()
    count = num_rows - num_byzantine
    weights = np.zeros(num_rows)
    weights[np.argsort(scores, kind="stable")[:count]] = 1.0
    return Combination(weights=weights, total=float(count), scores=scores)
