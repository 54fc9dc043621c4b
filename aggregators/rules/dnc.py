"""DnC: drop the updates that lie farthest out along the direction of most variance."""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.registry import require_tolerated
from aggregators.rows.dense_rows import RowsLike, as_rows
from aggregators.rows.gram import Gram
from aggregators.rows.rows import Rows, canonical_order
from aggregators.rule import Combination, Context, RuleResult, combine_in_order
from aggregators.rules.principal_component import principal_component

Floats = NDArray[np.float64]

_RUN: Final = 16  # float32 values in a cache line, which is read whole whatever is used of it
_LEAST_RUNS: Final = 64  # smaller samples are drawn in shorter runs


def dnc(  # noqa: PLR0913 -- one name per setting of the paper
    rows: RowsLike,
    *,
    num_byzantine: int,
    num_iterations: int = 1,
    sample_dim: int | None = 10_000,
    filter_fraction: float = 1.0,
    seed: int = 0,
) -> RuleResult:
    """Average the rows that no pass drops; a pass drops the ceil(c f) of most deviation.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        num_byzantine: f, rows that may be arbitrary; n >= 2 f + 1.
        num_iterations: passes, from 1, each on coordinates of its own. One, if a pass reads all.
        sample_dim: b, coordinates a pass looks at, from 1; None: all.
        filter_fraction: c, above 0; ceil(c f) < n.
        seed: decides the coordinates; secret from devices until the deadline has passed.

    Returns:
        The average with equal weights. A row's score is the part it has, on average over the
        passes, in the variance along the direction of most variance. Self-reported sample counts
        play no part.

    Raises:
        TooFewUpdatesError: if n < 2 f + 1.
        AggregationError: if another argument is out of range or an entry it reads is not finite.

    Guarantees:
        Invariant to row order, bit for bit.
        Keeps n - ceil(c f) rows after one pass, and never none: if every row is dropped by some
        pass, the n - ceil(c f) of least score are kept.
        Excludes up to f equal rows that are far from the others, where all coordinates are read.
        Not robust to rows that are far out in different directions; bound the norms first.

    Cost: O(k n^2 b + n d + k n^3) time for k passes, O(n b) memory; O(n^2 d) time and
    O(n^2 + block) memory if all coordinates are read.
    References: Shejwalkar and Houmansadr (2021), NDSS, Algorithm 2. Coordinates are drawn in runs
    of up to 16, each as likely as any other.
    """
    matrix = as_rows(rows)
    _require(matrix.num_rows, num_byzantine, num_iterations, filter_fraction)
    if sample_dim is not None and sample_dim < 1:
        message = f"sample_dim={sample_dim} of dnc must be at least 1"
        raise AggregationError(message)
    num_dropped = _num_dropped(num_byzantine, filter_fraction)
    order = canonical_order(matrix)
    if sample_dim is None or sample_dim >= matrix.dim:
        gram = matrix.gram()
        combination = _keep([_deviations(gram.take(order))], num_dropped)
        return combine_in_order(matrix, order, combination, gram=gram)
    generator = np.random.Generator(np.random.Philox(seed))
    passes = [
        _deviations(as_rows(_sample(matrix, sample_dim, generator)).gram().take(order))
        for _ in range(num_iterations)
    ]
    return combine_in_order(matrix, order, _keep(passes, num_dropped))


def apply(rows: Rows, context: Context, config: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    return dnc(rows, num_byzantine=config.num_malicious_nodes, seed=context.seed)


def _num_dropped(num_byzantine: int, filter_fraction: float) -> int:
    # A product like 0.28 * 25 comes out above the whole number that is meant.
    return math.ceil(filter_fraction * num_byzantine * (1.0 - 1e-12))


def _require(
    num_rows: int, num_byzantine: int, num_iterations: int, filter_fraction: float
) -> None:
    require_tolerated("dnc", num_rows, num_byzantine)
    if num_iterations < 1:
        message = f"num_iterations={num_iterations} of dnc must be at least 1"
        raise AggregationError(message)
    in_range = 0.0 < filter_fraction < math.inf
    if not in_range or _num_dropped(num_byzantine, filter_fraction) >= num_rows:
        message = f"filter_fraction={filter_fraction} of dnc must be above 0, with"
        message += f" ceil(filter_fraction * num_byzantine) < n={num_rows},"
        message += f" got num_byzantine={num_byzantine}"
        raise AggregationError(message)


def _deviations(gram: Gram) -> Floats:
    """Square the projections on the first principal component; as parts of their sum."""
    _, projections = principal_component(gram, np.ones(gram.num_rows))
    total = float(projections.sum())
    return projections / total if total > 0.0 else projections


def _keep(passes: list[Floats], num_dropped: int) -> Combination:
    scores: Floats = np.sum(passes, axis=0) / len(passes)
    num_kept = len(scores) - num_dropped
    kept = np.ones(len(scores), dtype=np.bool_)
    for deviations in passes:
        kept &= _least(deviations, num_kept)
    if not kept.any():
        kept = _least(scores, num_kept)
    return Combination(
        weights=kept.astype(np.float64), total=float(np.count_nonzero(kept)), scores=scores
    )


def _least(values: Floats, count: int) -> NDArray[np.bool_]:
    marked = np.zeros(len(values), dtype=np.bool_)
    marked[np.argsort(values, kind="stable")[:count]] = True
    return marked


def _sample(rows: Rows, sample_dim: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Copy `sample_dim` columns, fewer than there are, drawn in runs."""
    sample = np.empty((rows.num_rows, sample_dim), dtype=np.float32)
    filled = 0
    for start, stop in _runs(rows.dim, sample_dim, generator):
        sample[:, filled : filled + stop - start] = rows.read(start, stop)
        filled += stop - start
    return sample


def _runs(dim: int, sample_dim: int, generator: np.random.Generator) -> list[tuple[int, int]]:
    """Draw disjoint runs of columns that hold `sample_dim` together, in ascending order."""
    width = max(1, min(_RUN, sample_dim // _LEAST_RUNS))
    num_runs = -(-dim // width)
    # One more than needed: the last run of the columns may be short.
    count = min(num_runs, -(-sample_dim // width) + 1)
    # The columns are taken as a circle that is cut anywhere: so all are equally likely.
    cut = int(generator.integers(dim))
    runs = []
    left = sample_dim
    for run in generator.choice(num_runs, size=count, replace=False).tolist():
        length = min(width, dim - run * width, left)
        left -= length
        start = (run * width + cut) % dim
        runs += [(start, min(start + length, dim)), (0, max(start + length - dim, 0))]
    return sorted((start, stop) for start, stop in runs if start < stop)
