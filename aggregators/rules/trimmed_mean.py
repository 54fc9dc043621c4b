"""The coordinate-wise trimmed mean."""

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.rows.dense_rows import RowsLike, as_rows
from aggregators.rows.rows import Rows
from aggregators.rule import Context, RuleResult, by_coordinate


def trimmed_mean(rows: RowsLike, *, trim: int) -> RuleResult:
    """Average each coordinate after dropping its `trim` smallest and largest values.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        trim: values dropped at each end; 0 <= 2 * trim < n. At least f, the rows that may be
            arbitrary.

    Returns:
        The trimmed mean. Every row has an equal vote; self-reported sample counts play no part.

    Raises:
        TooFewUpdatesError: if 2 * trim >= n.
        AggregationError: if `trim` is negative or any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit.
        With at most `trim` arbitrary rows, every output coordinate lies within the range of the
        remaining rows.

    Cost: O(n d log^2 n) time, O(block) memory.
    References: Yin et al. (2018), arXiv:1803.01498, Definition 2.
    """
    matrix = as_rows(rows)
    if trim < 0:
        message = f"trim={trim} of trimmed-mean must be at least 0"
        raise AggregationError(message)
    if matrix.num_rows <= 2 * trim:
        message = f"trim={trim} of trimmed-mean must satisfy 2 * trim < n, got n={matrix.num_rows}:"
        message += f" at least {2 * trim + 1} updates would do, or trim of at most"
        message += f" {(matrix.num_rows - 1) // 2}"
        raise TooFewUpdatesError(message)
    return by_coordinate(matrix, matrix.trimmed_mean(trim))


def apply(rows: Rows, _: Context, config: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    trim = config.num_malicious_nodes if config.trim is None else config.trim
    return trimmed_mean(rows, trim=trim)
