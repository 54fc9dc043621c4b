"""The rules as one would write them with PyTorch on the processor. Imported only if installed."""

from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor

from benchmarks.kernels import rules
from benchmarks.kernels.peers.numpy_peer import FROM_MEAN, TIES, bulyan_selection
from benchmarks.kernels.ways import Answer, Call, Matrix, Way, Ways


def _bind(function: Callable[[Tensor, int], Tensor]) -> Callable[[Matrix, int], Call]:
    def bind(matrix: Matrix, num_byzantine: int) -> Call:
        return partial(_call, function, torch.from_numpy(matrix), num_byzantine)

    return bind


def _call(function: Callable[[Tensor, int], Tensor], rows: Tensor, num_byzantine: int) -> Answer:
    with torch.inference_mode():
        answer: Answer = function(rows, num_byzantine).numpy()
    return answer


def _mean(rows: Tensor, _: int) -> Tensor:
    return rows.mean(dim=0)


def _mean_by_product(rows: Tensor, _: int) -> Tensor:
    return torch.full((len(rows),), 1 / len(rows)) @ rows


def _median_by_sort(rows: Tensor, _: int) -> Tensor:
    # torch.median takes the lesser of two middle values, and torch.quantile sorts as well.
    ordered = rows.sort(dim=0).values
    return (ordered[(len(rows) - 1) // 2] + ordered[len(rows) // 2]) / 2


def _median_by_ranks(rows: Tensor, _: int) -> Tensor:
    if len(rows) % 2:
        return rows.median(dim=0).values
    half = len(rows) // 2
    return (rows.kthvalue(half, dim=0).values + rows.kthvalue(half + 1, dim=0).values) / 2


def _trimmed_mean(rows: Tensor, trim: int) -> Tensor:
    return rows.sort(dim=0).values[trim : len(rows) - trim].mean(dim=0)


def _squared_distances(rows: Tensor) -> Tensor:
    products = rows @ rows.T
    squares = products.diagonal()
    return (squares[:, None] + squares - 2 * products).clamp_(min=0)


def _scores(rows: Tensor, num_byzantine: int) -> Tensor:
    distances = _squared_distances(rows).fill_diagonal_(torch.inf)
    count = len(rows) - num_byzantine - 2
    return distances.topk(count, dim=1, largest=False).values.sum(dim=1)


def _krum(rows: Tensor, num_byzantine: int) -> Tensor:
    return rows[int(_scores(rows, num_byzantine).argmin())].clone()


def _multi_krum(rows: Tensor, num_byzantine: int) -> Tensor:
    count = len(rows) - num_byzantine
    weights = torch.zeros(len(rows))
    weights[_scores(rows, num_byzantine).topk(count, largest=False).indices] = 1 / count
    return weights @ rows


def _geometric_median(rows: Tensor, _: int) -> Tensor:
    squares = torch.linalg.vector_norm(rows, dim=1) ** 2
    center = _mean_by_product(rows, 0)
    for _step in range(rules.WEISZFELD_STEPS):
        distances = squares - 2 * (rows @ center) + center @ center
        weights = distances.clamp_(min=torch.finfo(torch.float32).tiny).rsqrt()
        center = (weights / weights.sum()) @ rows
    return center


def _bulyan(rows: Tensor, num_byzantine: int) -> Tensor:
    selected = bulyan_selection(_squared_distances(rows).numpy(), num_byzantine)
    return _mean_of_nearest(rows[torch.from_numpy(selected)], len(rows) - 4 * num_byzantine)


def _mean_around_median(rows: Tensor, num_byzantine: int) -> Tensor:
    return _mean_of_nearest(rows, len(rows) - num_byzantine)


def _mean_of_nearest(rows: Tensor, keep: int) -> Tensor:
    offsets = (rows - _median_by_ranks(rows, 0)).abs_()
    nearest = offsets.topk(keep, dim=0, largest=False, sorted=False).indices
    return rows.gather(0, nearest).mean(dim=0)


def _mixed_trimmed_mean(rows: Tensor, num_byzantine: int) -> Tensor:
    count = len(rows) - num_byzantine
    nearest = _squared_distances(rows).topk(count, dim=1, largest=False).indices
    mixing = torch.zeros(len(rows), len(rows)).scatter_(1, nearest, 1 / count)
    return _trimmed_mean(mixing @ rows, num_byzantine)


def _way(
    name: str,
    function: Callable[[Tensor, int], Tensor],
    *,
    rows_power: int = 1,
    copies: float = 4.5,
    note: str = "",
) -> Way:
    bind = _bind(function)
    return Way(name=name, bind=bind, rows_power=rows_power, copies=copies, note=note)


WAYS: Final[Ways] = {
    rules.MEAN: (
        _way("mean", _mean, copies=0.5),
        _way("weights @ x", _mean_by_product, copies=0.5),
    ),
    rules.MEDIAN: (_way("sort", _median_by_sort), _way("kthvalue", _median_by_ranks)),
    rules.TRIMMED_MEAN: (_way("sort", _trimmed_mean),),
    rules.KRUM: (_way("x @ x.T", _krum, rows_power=2, copies=0.5),),
    rules.MULTI_KRUM: (_way("x @ x.T", _multi_krum, rows_power=2, copies=0.5),),
    rules.GEOMETRIC_MEDIAN: (_way("x @ z", _geometric_median, copies=0.5, note=FROM_MEAN),),
    rules.BULYAN: (_way("x @ x.T, topk", _bulyan, rows_power=2, copies=8, note=TIES),),
    rules.MEAN_AROUND_MEDIAN: (_way("kthvalue, topk", _mean_around_median, copies=7, note=TIES),),
    rules.MIXED_TRIMMED_MEAN: (
        _way("x @ x.T, sort", _mixed_trimmed_mean, rows_power=2, copies=5.5),
    ),
}


def read(matrix: Matrix) -> float:
    """Read every value once, on all cores."""
    return float(torch.from_numpy(matrix).sum())


def multiply(left: Matrix, right: Matrix) -> Matrix:
    """Multiply matrices."""
    product: Matrix = np.asarray(torch.from_numpy(left).mm(torch.from_numpy(right)).numpy())
    return product
