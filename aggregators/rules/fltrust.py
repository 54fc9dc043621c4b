"""FLTrust: updates count as far as they point where the server's own update points."""

import numpy as np

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.rows.dense_rows import RowsLike, as_rows
from aggregators.rows.gram import Gram
from aggregators.rows.rows import Rows, Vector, canonical_order
from aggregators.rule import Combination, Context, RuleResult, combine_in_order, needed
from aggregators.rules.reference import gram_with_reference


def fltrust(rows: RowsLike, *, root_update: Vector) -> RuleResult:
    """Average the rows at the root update's length, weighted by their cosine with it.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        root_update: g, (d,), float32, finite: an update the server computed on data of its own.

    Returns:
        sum_i t_i (|g| / |x_i|) x_i / sum_i t_i with the trust t_i = max(cos(x_i, g), 0), which is
        0 for a row of zeros; a zero vector, and no weights, if no row is trusted. The score is
        1 - cos(x_i, g).

    Raises:
        AggregationError: if `root_update` does not match the rows or any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit.
        At most as long as the root update, whatever the rows.
        Scaling single rows leaves the result, up to rounding.

    Cost: O(n^2 d) time, O(n^2 + block) memory.
    References: Cao et al. (2021), arXiv:2012.13995, Algorithm 2.
    """
    matrix = as_rows(rows)
    order = canonical_order(matrix)
    gram, own = gram_with_reference(matrix, order, root_update, "root_update of fltrust")
    return combine_in_order(matrix, order, fltrust_weights(gram), gram=own)


def apply(rows: Rows, context: Context, _: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    return fltrust(rows, root_update=needed(context.root_update, "root_update"))


def fltrust_weights(gram: Gram) -> Combination:
    """Weigh n rows by their trust.

    Args:
        gram: of n + 1 rows, the root update last.

    Returns:
        The combination of the n rows.

    Raises:
        AggregationError: if the Gram matrix holds the root update alone.
    """
    if gram.num_rows < 2:
        message = "gram of fltrust must hold at least one row beside the root update, got none"
        raise AggregationError(message)
    norms, root_norm = gram.norms[:-1], float(gram.norms[-1])
    lengths = np.where(norms > 0.0, norms, 1.0)
    root_length = root_norm if root_norm > 0.0 else 1.0
    # Divided one by one: the product of two tiny lengths underflows.
    cosines = np.minimum(gram.inner[:-1, -1] / lengths / root_length, 1.0)
    trust = np.maximum(cosines, 0.0)
    total = float(trust.sum())
    return Combination(
        weights=trust * (root_norm / lengths),
        total=total if total > 0.0 else 1.0,
        scores=1.0 - cosines,
    )
