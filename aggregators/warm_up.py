"""Compiles the kernels before they are needed: `python -m aggregators.warm_up` all of them.

The first use of a kernel compiles it, or loads it from the cache. A server does that before it
says it is ready; an image does it when it is built.
"""

from contextlib import suppress
from typing import Final

import numpy as np

from aggregators.base import GradientAggregator, Update
from aggregators.capacity import least_updates
from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.rows.dense_rows import DenseRows
from aggregators.rows.stored_rows import MAX_WIDE_ROWS

_DIM: Final = 33  # whole vectors, and a rest


def warm_up(config: AggregatorConfig) -> None:
    """Aggregate a few numbers, so that the kernels of a rule are compiled.

    Raises:
        AggregationError: if the configuration names no known rule, or one that needs knowledge.
    """
    least = _least_rows(config)
    _aggregate(config, least)
    if least <= MAX_WIDE_ROWS:
        # Some rules refuse that many rows for that f: they will not need those kernels either.
        with suppress(AggregationError):
            _aggregate(config, MAX_WIDE_ROWS + 1)


def warm_up_all() -> None:
    """Run every kernel once."""
    for num_rows in (2, MAX_WIDE_ROWS + 1):
        rows = DenseRows(list(_values(num_rows)), num_threads=1)
        rows.gram()
        rows.norms()
        for votes in (rows, rows.scaled(np.full(num_rows, 0.5))):
            votes.combine(np.ones(num_rows))
        for ranked in (rows, rows.mixed(np.full((num_rows, num_rows), 1.0 / num_rows))):
            ranked.median()
            ranked.trimmed_mean(0)
            ranked.mean_around_median(1)
        rows.weighted_median(np.ones(num_rows), 0)


def _aggregate(config: AggregatorConfig, num_rows: int) -> None:
    updates = [
        Update(key=f"{row:06}", vector=vector, num_samples=1)
        for row, vector in enumerate(_values(num_rows))
    ]
    GradientAggregator(config).aggregate(updates)


def _least_rows(config: AggregatorConfig) -> int:
    """Return a number of rows that the steps and the rule admit, and that is a cohort."""
    return max(2, 2 * config.num_malicious_nodes + 1, least_updates(config))


def _values(num_rows: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    values = np.random.default_rng(0).standard_normal((num_rows, _DIM)).astype(np.float32)
    # Nearly equal rows: their distance is measured by differences.
    values[-1] = values[0]
    return values


if __name__ == "__main__":
    warm_up_all()
