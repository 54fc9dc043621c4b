"""Threads that sum rows hand on their memory, and the sums have the bits of a single thread's."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from aggregators.kernels.cell_products import CELL_COLUMNS
from aggregators.rows import dense_rows
from aggregators.rows.dense_rows import DenseRows
from tests.races.hunting import attempts

NUM_ROWS = 6
THREADS = 4
VECTORS = [
    np.random.default_rng(row).standard_normal(40 * CELL_COLUMNS + 5, dtype=np.float32)
    for row in range(NUM_ROWS)
]


def whole(num_threads: int) -> bytes:
    """Return every bit of the products that many threads add up."""
    return DenseRows(VECTORS, num_threads=num_threads).gram().inner.tobytes()


def found(hunt: Callable[[], bool], count: int) -> bool:
    return any(hunt() for _ in attempts(count))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    alone = whole(1)
    assert not found(lambda: whole(THREADS) != alone, 20)


def test_a_planted_race_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = whole(1)
    shared: dict[tuple[int, ...], NDArray[np.float64]] = {}

    def not_taken(_: object, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return shared.setdefault(shape, np.empty(shape))

    monkeypatch.setattr(dense_rows, "_taken", not_taken)
    assert found(lambda: whole(THREADS) != alone, 50)
