"""The rules as one would write them with numpy: float32 and BLAS, the fastest forms known to us."""

from collections.abc import Callable
from functools import partial
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.kernels import rules
from benchmarks.kernels.ways import Answer, Call, Matrix, Way, Ways

FROM_MEAN: Final = "Weiszfeld steps start at the mean"
TIES: Final = "float32 distances to the median that round alike are ties"

_BLOCK: Final = 1 << 12


Multiply: TypeAlias = Callable[[Matrix], Matrix]
DistanceRule: TypeAlias = Callable[[Matrix, int, Multiply], Answer]


def _bind(function: Callable[[Matrix, int], Answer]) -> Callable[[Matrix, int], Call]:
    return lambda matrix, num_byzantine: partial(function, matrix, num_byzantine)


def _mean_by_product(rows: Matrix, _: int) -> Answer:
    return np.full(len(rows), 1.0 / len(rows), dtype=np.float32) @ rows


def _mean(rows: Matrix, _: int) -> Answer:
    return np.asarray(rows.mean(axis=0))


def _median(rows: Matrix, _: int) -> Answer:
    return np.asarray(np.median(rows, axis=0))


def _median_by_sort(rows: Matrix, _: int) -> Answer:
    middle = slice((len(rows) - 1) // 2, len(rows) // 2 + 1)
    return np.asarray(np.sort(rows, axis=0)[middle].mean(axis=0))


def _trimmed_mean_by_sort(rows: Matrix, trim: int) -> Answer:
    return np.asarray(np.sort(rows, axis=0)[trim : len(rows) - trim].mean(axis=0))


def _trimmed_mean_by_partition(rows: Matrix, trim: int) -> Answer:
    kept = slice(trim, len(rows) - trim)
    parted = np.partition(rows, (trim, len(rows) - trim - 1), axis=0)
    return np.asarray(parted[kept].mean(axis=0))


def _products(rows: Matrix) -> Matrix:
    return rows @ rows.T


def _products_by_block(rows: Matrix) -> Matrix:
    # OpenBLAS is slow on few rows of many columns: blocks that fit the cache take a part of that.
    starts = range(0, rows.shape[1], _BLOCK)
    blocks = (rows[:, start : start + _BLOCK] for start in starts)
    total = np.zeros((len(rows), len(rows)), dtype=np.float32)
    for block in blocks:
        total += block @ block.T
    return total


def _squared_distances(products: Matrix) -> Matrix:
    squares = np.diagonal(products)
    distances: Matrix = np.maximum(squares[:, np.newaxis] + squares - 2 * products, 0)
    return distances


def nearest_sums(distances: Matrix, count: int) -> Matrix:
    """Sum the `count` least distances of each row to others."""
    others = distances.copy()
    np.fill_diagonal(others, np.inf)
    sums: Matrix = np.partition(others, count - 1, axis=1)[:, :count].sum(axis=1)
    return sums


def _krum(rows: Matrix, num_byzantine: int, multiply: Multiply) -> Answer:
    scores = nearest_sums(_squared_distances(multiply(rows)), len(rows) - num_byzantine - 2)
    return np.array(rows[int(np.argmin(scores))])


def _multi_krum(rows: Matrix, num_byzantine: int, multiply: Multiply) -> Answer:
    scores = nearest_sums(_squared_distances(multiply(rows)), len(rows) - num_byzantine - 2)
    count = len(rows) - num_byzantine
    weights = np.zeros(len(rows), dtype=np.float32)
    weights[np.argpartition(scores, count - 1)[:count]] = 1 / count
    return weights @ rows


def _geometric_median(rows: Matrix, _: int) -> Answer:
    squares = np.einsum("ij,ij->i", rows, rows)
    center = _mean_by_product(rows, 0)
    for _step in range(rules.WEISZFELD_STEPS):
        distances = squares - 2 * (rows @ center) + center @ center
        weights = 1 / np.sqrt(np.maximum(distances, np.finfo(np.float32).tiny))
        center = (weights / weights.sum()) @ rows
    return center


def bulyan_selection(distances: Matrix, num_byzantine: int) -> NDArray[np.intp]:
    """Select n - 2 f rows by Krum again and again."""
    left = np.arange(len(distances))
    selected = []
    for _ in range(len(distances) - 2 * num_byzantine):
        count = min(max(1, len(left) - num_byzantine - 2), len(left) - 1)
        scores = nearest_sums(distances[np.ix_(left, left)], count)
        place = int(np.argmin(scores))
        selected.append(left[place])
        left = np.delete(left, place)
    return np.array(selected)


def _bulyan(rows: Matrix, num_byzantine: int, multiply: Multiply) -> Answer:
    selected = bulyan_selection(_squared_distances(multiply(rows)), num_byzantine)
    return _mean_of_nearest(rows[selected], len(rows) - 4 * num_byzantine)


def _mean_around_median(rows: Matrix, num_byzantine: int) -> Answer:
    return _mean_of_nearest(rows, len(rows) - num_byzantine)


def _mean_of_nearest(rows: Matrix, keep: int) -> Answer:
    offsets = np.abs(rows - _median_by_sort(rows, 0))
    nearest = np.argpartition(offsets, keep - 1, axis=0)[:keep]
    return np.asarray(np.take_along_axis(rows, nearest, axis=0).mean(axis=0))


def _mixed_trimmed_mean(rows: Matrix, num_byzantine: int, multiply: Multiply) -> Answer:
    count = len(rows) - num_byzantine
    nearest = np.argpartition(_squared_distances(multiply(rows)), count - 1, axis=1)[:, :count]
    mixing = np.zeros((len(rows), len(rows)), dtype=np.float32)
    np.put_along_axis(mixing, nearest, np.float32(1 / count), axis=1)
    return _trimmed_mean_by_sort(mixing @ rows, num_byzantine)


def _way(
    name: str,
    function: Callable[[Matrix, int], Answer],
    *,
    rows_power: int = 1,
    copies: float = 2.5,
    note: str = "",
) -> Way:
    bind = _bind(function)
    return Way(name=name, bind=bind, rows_power=rows_power, copies=copies, note=note)


def _distance_ways(
    name: str, function: DistanceRule, *, copies: float, note: str = ""
) -> tuple[Way, Way]:
    def bound(multiply: Multiply) -> Callable[[Matrix, int], Answer]:
        return lambda rows, num_byzantine: function(rows, num_byzantine, multiply)

    whole, by_block = (
        _way(how + name, bound(multiply), rows_power=2, copies=copies, note=note)
        for how, multiply in (("x @ x.T", _products), ("x @ x.T by block", _products_by_block))
    )
    return whole, by_block


WAYS: Final[Ways] = {
    rules.MEAN: (
        _way("weights @ x", _mean_by_product, copies=0.5),
        _way("mean", _mean, copies=0.5),
    ),
    rules.MEDIAN: (_way("median", _median), _way("sort", _median_by_sort)),
    rules.TRIMMED_MEAN: (
        _way("sort", _trimmed_mean_by_sort),
        _way("partition", _trimmed_mean_by_partition),
    ),
    rules.KRUM: _distance_ways("", _krum, copies=0.5),
    rules.MULTI_KRUM: _distance_ways("", _multi_krum, copies=0.5),
    rules.GEOMETRIC_MEDIAN: (_way("x @ z", _geometric_median, copies=0.5, note=FROM_MEAN),),
    rules.BULYAN: _distance_ways(", argpartition", _bulyan, copies=8, note=TIES),
    rules.MEAN_AROUND_MEDIAN: (
        _way("sort, argpartition", _mean_around_median, copies=7, note=TIES),
    ),
    rules.MIXED_TRIMMED_MEAN: _distance_ways(", sort", _mixed_trimmed_mean, copies=3.5),
}
