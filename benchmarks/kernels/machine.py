"""What the machine can do at best: read memory once, multiply matrices."""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators.kernels.compiler import kernel
from aggregators.kernels.threads import cut, num_cores, run_pieces
from benchmarks.kernels.peers.registry import is_installed
from benchmarks.kernels.ways import Matrix

_READS: Final = 4  # the first one compiles
_PRODUCTS: Final = 3
_PRODUCT_ROWS: Final = 2048
_STEP: Final = 1 << 12  # values: a multiple of a page


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOnce:
    """The least time it takes to read the rows once, on all cores.

    Attributes:
        ms: the shortest read seen.
        gb_per_s: the same as bandwidth, 1e9 bytes a second.
        reader: what read them.
    """

    ms: float
    gb_per_s: float
    reader: str


def measure_read_once(matrix: Matrix, before: ReadOnce | None = None) -> ReadOnce:
    """Read all rows several times in several ways; keep the shortest time, `before` included.

    The shortest, as no rule can do with less: while something else uses the memory, a read takes
    several times as long.
    """
    readers: dict[str, Callable[[Matrix], object]] = {
        "compiled loop": _read_by_loop,
        "numpy": _read_by_numpy,
    }
    if is_installed("torch"):
        readers["torch"] = importlib.import_module("benchmarks.kernels.peers.torch_peer").read
    best, reader = min(
        (seconds_of(partial(read, matrix)), name)
        for _ in range(_READS)
        for name, read in readers.items()
    )
    if before is not None and before.ms <= 1e3 * best:
        return before
    return ReadOnce(ms=1e3 * best, gb_per_s=matrix.nbytes / best / 1e9, reader=reader)


def measure_matrix_product() -> float:
    """Multiply float32 matrices, 1e9 operations a second, by the fastest library at hand."""
    factor = np.ones((_PRODUCT_ROWS, _PRODUCT_ROWS), dtype=np.float32)
    multipliers: list[Callable[[Matrix, Matrix], Matrix]] = [np.matmul]
    if is_installed("torch"):
        multipliers.append(importlib.import_module("benchmarks.kernels.peers.torch_peer").multiply)
    best = min(
        seconds_of(partial(multiply, factor, factor))
        for _ in range(_PRODUCTS)
        for multiply in multipliers
    )
    return 2 * _PRODUCT_ROWS**3 / best / 1e9


def seconds_of(call: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _read_by_loop(matrix: Matrix) -> None:
    words = matrix.reshape(-1).view(np.int32)
    _on_all_cores(lambda part: int(_fold(words[part])), words.size)


def _read_by_numpy(matrix: Matrix) -> None:
    values = matrix.reshape(-1)
    _on_all_cores(lambda part: float(values[part].max()), values.size)


def _on_all_cores(read: Callable[[slice], object], size: int) -> None:
    threads = num_cores()
    pieces = cut(size, step=_STEP, num_threads=threads)
    for _ in run_pieces(lambda piece: read(slice(*piece)), pieces, num_threads=threads):
        pass


@kernel
def _fold(words: NDArray[np.int32]) -> int:
    # Integers, as a sum of floats must keep its order and then waits for itself, not for memory.
    folded = np.int32(0)
    for word in words:
        folded ^= word
    return int(folded)
