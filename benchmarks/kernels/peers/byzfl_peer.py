"""The rules of byzfl, on arrays and on tensors. Imported only if installed, as PyTorch must be."""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
import torch

from benchmarks.kernels import rules
from benchmarks.kernels.peers.byzfl_package import aggregators_of_byzfl
from benchmarks.kernels.peers.numpy_peer import TIES
from benchmarks.kernels.ways import Call, Matrix, Way, Ways

_MORE_NEIGHBOURS: Final = "scores take n - f - 1 neighbours"
_FROM_ZERO: Final = "Weiszfeld steps start at 0"


_BYZFL: Final = aggregators_of_byzfl()

Make: TypeAlias = Callable[[int], Callable[[Any], Any]]


def _bind_array(make: Make) -> Callable[[Matrix, int], Call]:
    def bind(matrix: Matrix, num_byzantine: int) -> Call:
        rule = make(num_byzantine)
        return lambda: np.asarray(rule(matrix))

    return bind


def _bind_tensor(make: Make) -> Callable[[Matrix, int], Call]:
    def bind(matrix: Matrix, num_byzantine: int) -> Call:
        rule, rows = make(num_byzantine), torch.from_numpy(matrix)

        def call() -> Matrix:
            with torch.inference_mode():
                return np.asarray(rule(rows).numpy())

        return call

    return bind


def _ways(
    name: str,
    make: Make,
    *,
    rows_power: int = 1,
    copies: float = 4.5,
    copies_per_row: float = 0.0,
    note: str = "",
) -> tuple[Way, Way]:
    array, tensor = (
        Way(
            name=f"{name}, {kind}",
            bind=bind,
            rows_power=rows_power,
            copies=copies,
            copies_per_row=copies_per_row,
            note=note,
        )
        for kind, bind in (("array", _bind_array(make)), ("tensor", _bind_tensor(make)))
    )
    return array, tensor


def _mixed_trimmed_mean(num_byzantine: int) -> Callable[[Any], Any]:
    mix, trim = _BYZFL.NNM(num_byzantine), _BYZFL.TrMean(num_byzantine)
    return lambda rows: trim(mix(rows))


WAYS: Final[Ways] = {
    rules.MEAN: _ways("Average", lambda _: _BYZFL.Average()),
    rules.MEDIAN: _ways("Median", lambda _: _BYZFL.Median()),
    rules.TRIMMED_MEAN: _ways("TrMean", _BYZFL.TrMean),
    rules.KRUM: _ways("Krum", _BYZFL.Krum, rows_power=2, note=_MORE_NEIGHBOURS),
    rules.MULTI_KRUM: _ways("MultiKrum", _BYZFL.MultiKrum, rows_power=2, note=_MORE_NEIGHBOURS),
    rules.GEOMETRIC_MEDIAN: _ways(
        "GeometricMedian",
        lambda _: _BYZFL.GeometricMedian(nu=1e-6, T=rules.WEISZFELD_STEPS),
        note=_FROM_ZERO,
    ),
    rules.MEAN_AROUND_MEDIAN: _ways("Meamed", _BYZFL.Meamed, copies=10, note=TIES),
    rules.MIXED_TRIMMED_MEAN: _ways(
        "NNM, TrMean", _mixed_trimmed_mean, rows_power=2, copies_per_row=1
    ),
}
