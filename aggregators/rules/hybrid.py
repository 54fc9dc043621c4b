"""The hybrid pipeline: clip, gate by norm, trim each coordinate, then take a weighted median."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.preaggregations.clipping import median_clipping_factors
from aggregators.registry import require_tolerated
from aggregators.rows.dense_rows import RowsLike, as_rows
from aggregators.rows.rows import Floats, Rows, canonical_order
from aggregators.rule import Context, RuleResult
from aggregators.rules.mean import require_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridLimits:
    """What the stages before the median allow; norms are multiples of the median norm.

    Attributes:
        clip_factor: longer rows are shortened to it.
        max_norm_factor: rows longer than it before clipping are dropped.
        min_norm_factor: shorter rows are dropped: they only water the result down.
        weight_cap: largest weight of a row, as a multiple of the median weight above 0, because
            devices report their sample counts themselves.
        trust_exponent: the weight is multiplied by trust to this power.
    """

    clip_factor: float = 1.5
    max_norm_factor: float = 5.0
    min_norm_factor: float = 0.05
    weight_cap: float = 2.0
    trust_exponent: float = 1.0

    def __post_init__(self) -> None:
        """Refuse limits that could shut out every row.

        Raises:
            AggregationError: if a number is out of range.
        """
        if not 0.0 < self.clip_factor < math.inf:
            message = f"clip_factor={self.clip_factor} of hybrid must be finite and above 0"
            raise AggregationError(message)
        # Of an even number of rows the median norm is at least half the longer middle one.
        if not 2.0 <= self.max_norm_factor < math.inf:
            message = f"max_norm_factor={self.max_norm_factor} of hybrid must be finite, at least 2"
            raise AggregationError(message)
        if not 0.0 <= self.min_norm_factor <= 1.0:
            message = f"min_norm_factor={self.min_norm_factor} of hybrid must be in 0..1"
            raise AggregationError(message)
        if not 1.0 <= self.weight_cap < math.inf:
            message = f"weight_cap={self.weight_cap} of hybrid must be finite and at least 1"
            raise AggregationError(message)
        if not 0.0 <= self.trust_exponent < math.inf:
            message = f"trust_exponent={self.trust_exponent} of hybrid must be finite, at least 0"
            raise AggregationError(message)


DEFAULT_LIMITS: Final = HybridLimits()


def hybrid(
    rows: RowsLike,
    *,
    num_byzantine: int,
    weights: Floats | None = None,
    trust: Floats | None = None,
    limits: HybridLimits = DEFAULT_LIMITS,
) -> RuleResult:
    """Take each coordinate's weighted median of clipped rows without its f extremes on each side.

    Clips to 1.5 times the median norm; drops rows whose norm is above 5 times or below 1/20 of
    it; weighs the rest by capped sample count times trust; per coordinate drops the f smallest and
    f largest values and takes the weighted median of the rest. Rows are not dropped for norms
    above mean + 3 standard deviations: one outlier among n lies at most sqrt(n - 1) standard
    deviations from a mean it moves itself, so that no row of ten or fewer ever would be.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        num_byzantine: f, rows that may be arbitrary; n >= 2 f + 1. If rows were dropped and 2 f or
            fewer are left, as many values are trimmed as leaves one or two.
        weights: (n,), float64; each 0 or in 2**-512..2**53, not all 0. Usually sample counts.
            None: equal weights.
        trust: (n,), float64, each in 0..1. None: full trust.
        limits: what the stages before the median allow.

    Returns:
        The median, and each row's share of the weight; dropped rows and those of weight 0 count as
        not selected. If none is left: zeros.

    Raises:
        TooFewUpdatesError: if n < 2 f + 1.
        AggregationError: if another argument is out of range or any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit.
        With at most f arbitrary rows and 2 f + 1 left, every output coordinate lies within the
        range of the remaining clipped rows, whatever the weights.
        No output coordinate exceeds 1.5 times the median norm, up to rounding.

    Cost: O(n d log^2 n) time, O(block) memory.
    References: Trimming and medians: Yin et al. (2018), arXiv:1803.01498, Definitions 1 and 2.
    """
    matrix = as_rows(rows)
    num_rows = matrix.num_rows
    require_tolerated("hybrid", num_rows, num_byzantine)
    votes = np.ones(num_rows) if weights is None else weights
    require_weights(votes, num_rows)
    beliefs = np.ones(num_rows) if trust is None else trust
    if beliefs.shape != (num_rows,) or not ((beliefs >= 0.0) & (beliefs <= 1.0)).all():
        message = f"trust={beliefs} of hybrid must be one number in 0..1 per row, n={num_rows}"
        raise AggregationError(message)
    order = np.array(canonical_order(matrix, (votes, beliefs)))
    norms = matrix.take(order.tolist()).norms()
    shares = cap_by_median(votes[order], limits.weight_cap)
    shares *= beliefs[order] ** limits.trust_exponent
    kept = _within(norms, limits) & (shares > 0.0)
    found = np.zeros(num_rows)
    vector = np.zeros(matrix.dim, dtype=np.float32)
    if kept.any():
        factors = median_clipping_factors(norms, factor=limits.clip_factor)
        left = matrix.take(order[kept].tolist()).scaled(factors[kept])
        trim = min(num_byzantine, (left.num_rows - 1) // 2)
        vector = left.weighted_median(shares[kept], trim)
        found[order[kept]] = shares[kept] / math.fsum(shares[kept].tolist())
    return RuleResult(vector=vector, weights=found, selected=found > 0.0)


def apply(rows: Rows, context: Context, config: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    return hybrid(
        rows,
        num_byzantine=config.num_malicious_nodes,
        weights=context.weights,
        trust=context.trust,
    )


def cap_by_median(weights: Floats, factor: float) -> Floats:
    """Lower weights to at most `factor` times the median of those above 0.

    Args:
        weights: (n,), float64, finite, not negative. Not modified.
        factor: at least 1.
    """
    positive = weights[weights > 0.0]
    if positive.size == 0:
        return weights.copy()
    capped: Floats = np.minimum(weights, factor * np.median(positive))
    return capped


def _within(norms: Floats, limits: HybridLimits) -> NDArray[np.bool_]:
    """Tell which norms are near enough to the median."""
    median = float(np.median(norms))
    kept: NDArray[np.bool_] = (norms <= limits.max_norm_factor * median) & (
        norms >= limits.min_norm_factor * median
    )
    return kept
