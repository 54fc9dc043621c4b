"""The coordinate-wise median."""

from aggregators.config import AggregatorConfig
from aggregators.rows.dense_rows import RowsLike, as_rows
from aggregators.rows.rows import Rows
from aggregators.rule import Context, RuleResult, by_coordinate


def median(rows: RowsLike) -> RuleResult:
    """Take the median of each coordinate; for even n the average of the two middle values.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.

    Returns:
        The median. Every row has an equal vote; self-reported sample counts play no part.

    Raises:
        AggregationError: if any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit.
        With fewer than half of the rows arbitrary, every output coordinate lies within the range
        of the remaining rows.

    Cost: O(n d log^2 n) time, O(block) memory.
    References: Yin et al. (2018), arXiv:1803.01498, Definition 1.
    """
    matrix = as_rows(rows)
    return by_coordinate(matrix, matrix.median())


def apply(rows: Rows, _context: Context, _config: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    return median(rows)
