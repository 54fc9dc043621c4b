"""Multi-Krum: the mean of the updates with the best Krum scores."""

import numpy as np

from aggregators.errors import AggregationError
from aggregators.numerics import weighted_mean
from aggregators.rows import RowsLike, as_rows
from aggregators.rule import RuleResult
from aggregators.rules.krum import rank_by_krum_score


def multi_krum(
    rows: RowsLike, *, num_byzantine: int, num_to_select: int | None = None
) -> RuleResult:
    """Average the m rows with the least Krum scores; scores are computed once.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        num_byzantine: f, rows that may be arbitrary; n >= 2 f + 3.
        num_to_select: m, 1 <= m <= n - f; None: n - f.

    Returns:
        The average of the selected rows with equal weights, and every row's score. Self-reported
        sample counts play no part.

    Raises:
        TooFewUpdatesError: if n < 2 f + 3.
        AggregationError: if another argument is out of range or any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit: of equal scores the lexicographically lesser row
        goes first.
        With num_to_select=1, the same vector as `krum`.

    Cost: O(n^2 d) time, O(n^2 + block) memory.
    References: Blanchard et al. (2017), arXiv:1703.02757, Section 4 ("m-Krum").
    """
    matrix = as_rows(rows)
    ranking, scores = rank_by_krum_score(matrix, num_byzantine=num_byzantine)
    most = matrix.num_rows - num_byzantine
    count = most if num_to_select is None else num_to_select
    if not 1 <= count <= most:
        message = f"num_to_select={count} must be in 1..n - num_byzantine={most}"
        raise AggregationError(message)
    best = ranking[:count]
    selected = np.zeros(matrix.num_rows, dtype=np.bool_)
    selected[best] = True
    return RuleResult(
        vector=weighted_mean(matrix.take(best), np.ones(count)),
        weights=selected / count,
        selected=selected,
        scores=scores,
    )
