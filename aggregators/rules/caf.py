"""CAF: weights shrink along the direction of most variance until too few are left."""

import math

import numpy as np

from aggregators.config import AggregatorConfig
from aggregators.registry import require_tolerated
from aggregators.rows.dense_rows import RowsLike
from aggregators.rows.gram import Gram
from aggregators.rows.rows import Rows
from aggregators.rule import Combination, Context, RuleResult, combine_by_gram
from aggregators.rules.principal_component import principal_component


def caf(rows: RowsLike, *, num_byzantine: int) -> RuleResult:
    """Average the rows by the weights, of those the filter passes through, that vary least.

    While the weights sum to more than n - 2 f, each is shrunk in proportion to its row's squared
    deviation along the direction of most variance; the farthest row loses all of its weight.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        num_byzantine: f, rows that may be arbitrary; n >= 2 f + 1.

    Returns:
        The weighted average of least largest variance. The score is the weight a row lost, 0 to
        1. Every row starts with an equal vote; self-reported sample counts play no part.

    Raises:
        TooFewUpdatesError: if n < 2 f + 1.
        AggregationError: if `num_byzantine` is negative or any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit.
        With f = 0, and where all rows are equal, the mean.
        With at most f arbitrary rows, stays within a bound set by the others.

    Cost: O(n^2 d + f n^3) time, O(n^2 + block) memory.
    References: Allouah, Guerraoui and Stephan (2025), arXiv:2505.01874, Algorithm 2, with the
    exact eigenvector in place of power iteration. The farthest row is sought among those that
    have weight left: one that lost its own must not shelter the others.
    """
    return combine_by_gram(rows, lambda gram, _: caf_weights(gram, num_byzantine=num_byzantine))


def apply(rows: Rows, _: Context, config: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    return caf(rows, num_byzantine=config.num_malicious_nodes)


def caf_weights(gram: Gram, *, num_byzantine: int) -> Combination:
    """Find the weights of least largest variance; scores are what rows lost of theirs.

    Raises:
        TooFewUpdatesError: if n < 2 f + 1.
        AggregationError: if `num_byzantine` is negative.
    """
    require_tolerated("caf", gram.num_rows, num_byzantine)
    weights = np.ones(gram.num_rows)
    best, least = weights, math.inf
    while weights.sum() > gram.num_rows - 2 * num_byzantine:
        variance, projections = principal_component(gram, weights)
        if variance < least:
            best, least = weights, variance
        if variance == 0.0:
            break
        weights = weights * (1.0 - projections / projections.max())
    return Combination(weights=best, total=float(best.sum()), scores=1.0 - best)
