"""The rules of Flower: the bare functions behind its strategies. Imported only if installed."""

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
from flwr.server.strategy.aggregate import (
    aggregate,
    aggregate_bulyan,
    aggregate_krum,
    aggregate_median,
    aggregate_trimmed_avg,
)
from numpy.typing import NDArray

from benchmarks.kernels import rules
from benchmarks.kernels.peers.numpy_peer import TIES
from benchmarks.kernels.ways import Answer, Call, Matrix, Way, Ways

Results: TypeAlias = list[tuple[list[NDArray[np.float32]], int]]


def _bind(function: Callable[[Results, int], list[Answer]]) -> Callable[[Matrix, int], Call]:
    def bind(matrix: Matrix, num_byzantine: int) -> Call:
        results: Results = [([row], 1) for row in matrix]
        # A copy of the list: Bulyan takes results out of it.
        return lambda: function(list(results), num_byzantine)[0]

    return bind


def _krum(results: Results, num_byzantine: int) -> list[Answer]:
    return [aggregate_krum(results, num_byzantine, 0)[0].copy()]


WAYS: Final[Ways] = {
    rules.MEAN: (Way(name="aggregate", bind=_bind(lambda results, _: aggregate(results))),),
    rules.MEDIAN: (
        Way(name="aggregate_median", bind=_bind(lambda results, _: aggregate_median(results))),
    ),
    rules.TRIMMED_MEAN: (
        Way(
            name="aggregate_trimmed_avg",
            # It drops int(proportion * n) values: half a value more keeps rounding out.
            bind=_bind(lambda results, f: aggregate_trimmed_avg(results, (f + 0.5) / len(results))),
        ),
    ),
    rules.KRUM: (Way(name="aggregate_krum", bind=_bind(_krum), rows_power=2),),
    rules.MULTI_KRUM: (
        Way(
            name="aggregate_krum",
            bind=_bind(lambda results, f: aggregate_krum(results, f, len(results) - f)),
            rows_power=2,
        ),
    ),
    rules.BULYAN: (
        Way(
            name="aggregate_bulyan",
            bind=_bind(lambda results, f: aggregate_bulyan(results, f, aggregate_krum, to_keep=0)),
            rows_power=3,
            copies=8,
            note=TIES,
        ),
    ),
}
