"""The rules that are measured, as this library computes them, and what they are measured on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from aggregators.preaggregations.nearest_neighbour_mixing import nearest_neighbour_mixing
from aggregators.rows.dense_rows import as_rows
from aggregators.rule import RuleResult
from aggregators.rules.bulyan import bulyan
from aggregators.rules.geometric_median import geometric_median
from aggregators.rules.krum import krum
from aggregators.rules.mean import mean
from aggregators.rules.mean_around_median import mean_around_median
from aggregators.rules.median import median
from aggregators.rules.multi_krum import multi_krum
from aggregators.rules.trimmed_mean import trimmed_mean
from benchmarks.kernels.ways import Call, Matrix, Way

MEAN: Final = "mean"
MEDIAN: Final = "median"
TRIMMED_MEAN: Final = "trimmed-mean"
KRUM: Final = "krum"
MULTI_KRUM: Final = "multi-krum"
GEOMETRIC_MEDIAN: Final = "geometric-median"
BULYAN: Final = "bulyan"
MEAN_AROUND_MEDIAN: Final = "mean-around-median"
MIXED_TRIMMED_MEAN: Final = "nnm+trimmed-mean"

WEISZFELD_STEPS: Final = 3
LEAST_ROWS: Final = 3  # Krum and Bulyan take no fewer


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRule:
    """A rule of this library, and for which f it is measured.

    Attributes:
        compute: the rule of this library, from the rows and f.
        num_byzantine: f for n rows.
        is_distances: nearly all of the work is the n (n + 1) / 2 inner products.
    """

    compute: Callable[[Matrix, int], RuleResult]
    num_byzantine: Callable[[int], int]
    is_distances: bool = False

    def way(self) -> Way:
        """Describe this library as a peer is described."""
        return Way(name="fedagg", bind=self._bind, rows_power=2, copies=0.5)

    def _bind(self, matrix: Matrix, num_byzantine: int) -> Call:
        return lambda: self.compute(matrix, num_byzantine).vector


def _fifth(num_rows: int) -> int:
    return num_rows // 5


def _most_of_bulyan(num_rows: int) -> int:
    return (num_rows - 3) // 4


def _mixed_trimmed_mean(matrix: Matrix, num_byzantine: int) -> RuleResult:
    mixed = nearest_neighbour_mixing(as_rows(matrix), num_byzantine=num_byzantine)
    return trimmed_mean(mixed, trim=num_byzantine)


RULES: Final[Mapping[str, MeasuredRule]] = {
    MEAN: MeasuredRule(compute=lambda rows, _: mean(rows), num_byzantine=_fifth),
    MEDIAN: MeasuredRule(compute=lambda rows, _: median(rows), num_byzantine=_fifth),
    TRIMMED_MEAN: MeasuredRule(
        compute=lambda rows, trim: trimmed_mean(rows, trim=trim), num_byzantine=_fifth
    ),
    KRUM: MeasuredRule(
        compute=lambda rows, f: krum(rows, num_byzantine=f),
        num_byzantine=_fifth,
        is_distances=True,
    ),
    MULTI_KRUM: MeasuredRule(
        compute=lambda rows, f: multi_krum(rows, num_byzantine=f),
        num_byzantine=_fifth,
        is_distances=True,
    ),
    GEOMETRIC_MEDIAN: MeasuredRule(
        compute=lambda rows, _: geometric_median(rows, max_steps=WEISZFELD_STEPS),
        num_byzantine=_fifth,
    ),
    BULYAN: MeasuredRule(
        compute=lambda rows, f: bulyan(rows, num_byzantine=f), num_byzantine=_most_of_bulyan
    ),
    MEAN_AROUND_MEDIAN: MeasuredRule(
        compute=lambda rows, f: mean_around_median(rows, num_byzantine=f), num_byzantine=_fifth
    ),
    MIXED_TRIMMED_MEAN: MeasuredRule(compute=_mixed_trimmed_mean, num_byzantine=_fifth),
}


def make_rows(num_rows: int, dim: int, seed: int) -> Matrix:
    """Draw rows around one direction, each with a spread of its own.

    Spreads that differ keep scores apart, so that libraries that round differently still select
    the same rows; rows that ascend make ties by value fall as ties by position do.

    Returns:
        (n, d), float32, C order.
    """
    rng = np.random.Generator(np.random.SFC64(seed))
    spreads = rng.permutation(np.linspace(0.5, 1.5, num_rows, dtype=np.float32))
    center = rng.standard_normal(dim, dtype=np.float32)
    matrix = np.empty((num_rows, dim), dtype=np.float32)
    for row, spread in zip(matrix, spreads, strict=True):
        rng.standard_normal(dim, dtype=np.float32, out=row)
        np.multiply(row, spread, out=row)
        np.add(row, center, out=row)
    matrix[:, 0].sort()
    return matrix
