"""The coordinate-wise mean around the median (MeaMed)."""

from aggregators.config import AggregatorConfig
from aggregators.registry import require_tolerated
from aggregators.rows.dense_rows import RowsLike, as_rows
from aggregators.rows.rows import Rows
from aggregators.rule import Context, RuleResult, by_coordinate


def mean_around_median(rows: RowsLike, *, num_byzantine: int) -> RuleResult:
    """Average each coordinate's n - f values nearest to its median.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        num_byzantine: f, rows that may be arbitrary; n >= 2 f + 1.

    Returns:
        The averages. Every row has an equal vote; self-reported sample counts play no part.

    Raises:
        TooFewUpdatesError: if n < 2 f + 1.
        AggregationError: if `num_byzantine` is negative or any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit: of two values equally near the lesser is kept.
        With at most f arbitrary rows, every output coordinate lies within the range of the
        others, widened on either side by the width of that range.

    Cost: O(n d log^2 n) time, O(block) memory.
    References: Xie, Koyejo and Gupta (2018), arXiv:1802.10116, "mean around median".
    """
    matrix = as_rows(rows)
    require_tolerated("mean-around-median", matrix.num_rows, num_byzantine)
    return by_coordinate(matrix, matrix.mean_around_median(matrix.num_rows - num_byzantine))


def apply(rows: Rows, _: Context, config: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    return mean_around_median(rows, num_byzantine=config.num_malicious_nodes)
