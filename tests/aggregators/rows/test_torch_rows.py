"""Rows on a device of torch: the bits of the kernels of this process, whatever the operation."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="torch is not installed")

from aggregators.errors import AggregationError, TooFewUpdatesError  # noqa: E402
from aggregators.kernels.cell_products import CELL_COLUMNS  # noqa: E402
from aggregators.rows import torch_rows  # noqa: E402
from aggregators.rows.cell_tree import fold  # noqa: E402
from aggregators.rows.dense_rows import DenseRows, as_rows  # noqa: E402
from aggregators.rows.rows import Rows  # noqa: E402
from aggregators.rows.torch_rows import TorchRows  # noqa: E402
from aggregators.rules.krum import krum  # noqa: E402
from tests.aggregators.matrices import (  # noqa: E402
    EDGE_VALUES,
    TIED_FLOAT,
    Floats,
    Matrix,
    cancelling_rows,
    honest_rows,
    integer_rows,
    matrices,
    mixed_magnitudes,
    near_identical_rows,
    same_bits,
    tied_rows,
)

DEVICES: Final = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FLOATS: Final = (
    TIED_FLOAT | st.sampled_from(EDGE_VALUES) | st.floats(-(2.0**100), 2.0**100, width=32)
)
NARROW: Final = 64 * 40 * 100
"""Working memory in which matrices of 40 rows are read a hundred columns at a time."""

on_devices = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def narrow_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_rows, "CPU_BLOCK_BYTES", NARROW)
    monkeypatch.setattr(torch_rows, "DEVICE_BLOCK_BYTES", NARROW)


def outcome(operation: Callable[..., Matrix], *args: object) -> Matrix | str:
    """What comes of it, or why nothing does."""
    try:
        return operation(*args)
    except AggregationError as error:
        return str(error)


def outcomes(rows: Rows, seed: int) -> Iterator[Matrix | str]:
    """All that makes a vector, of rows and of what is derived from them."""
    num_rows, generator = rows.num_rows, np.random.default_rng(seed)
    factors, mixing = generator.random(num_rows), generator.dirichlet(np.ones(num_rows), 5)
    derived = [
        rows,
        rows.scaled(factors),
        rows.scaled(factors).mixed(mixing).take([4, 2, 1]),
        rows.take(list(reversed(range(num_rows)))),
        rows.extended(rows.read(0, rows.dim)[0]),
    ]
    for some in derived:
        yield some.read(0, rows.dim)
        yield outcome(some.median)
        yield outcome(some.mean_around_median, 1)
        whole = generator.integers(0, 1000, some.num_rows).astype(np.float64)
        for weights in (whole, generator.random(some.num_rows)):
            yield outcome(some.combine, weights, 3.0)
            yield outcome(some.weighted_median, weights, 0)
    most = (num_rows - 1) // 2
    for trim in (0, most // 2, most):
        yield outcome(rows.trimmed_mean, trim)
        yield outcome(rows.weighted_median, factors, trim)
        yield outcome(rows.mean_around_median, num_rows - trim)


def require_same_vectors(matrix: Matrix, device: str, seed: int = 0) -> None:
    here, there = as_rows(matrix), TorchRows.of(matrix, device=device)
    for expected, found in zip(outcomes(here, seed), outcomes(there, seed), strict=True):
        if isinstance(expected, str) or isinstance(found, str):
            assert found == expected
        else:
            assert same_bits(found, expected)


def require_same_sums(matrix: Matrix, device: str) -> None:
    here, there = as_rows(matrix), TorchRows.of(matrix, device=device)
    every = np.array([(i, j) for i in range(len(matrix)) for j in range(i + 1)])
    factors = np.linspace(0.3, 1.0, len(matrix))
    for first, second in ((here, there), (here.scaled(factors), there.scaled(factors))):
        assert isinstance(first, DenseRows)
        assert isinstance(second, TorchRows)
        assert same_bits(first.norms(), second.norms())
        assert same_bits(first.gram().inner, second.gram().inner)
        assert same_bits(first.gram().squared_distances, second.gram().squared_distances)
        assert same_bits(fold(first.distance_nodes(every)), fold(second.distance_nodes(every)))


@on_devices
@given(matrices(elements=FLOATS), st.integers(0, 1000))
def test_vectors_have_the_bits_of_the_kernels_on_anything(
    device: str, matrix: Matrix, seed: int
) -> None:
    require_same_vectors(matrix, device, seed)


@on_devices
@pytest.mark.parametrize("num_rows", [2, 16, 37])
@pytest.mark.parametrize(
    "draw",
    [honest_rows, tied_rows, integer_rows, cancelling_rows, near_identical_rows, mixed_magnitudes],
)
def test_vectors_have_the_bits_of_the_kernels(
    device: str, draw: Callable[[int, int, int], Matrix], num_rows: int
) -> None:
    require_same_vectors(draw(1, num_rows, 1003), device)


@on_devices
@pytest.mark.parametrize("dim", [1, 16, CELL_COLUMNS, CELL_COLUMNS + 5, 7 * CELL_COLUMNS + 1037])
@pytest.mark.parametrize("num_rows", [1, 5, 17])
@pytest.mark.parametrize("cells_at_a_time", [1, 3, 100])
def test_sums_over_columns_have_the_bits_of_the_kernels(
    device: str, dim: int, num_rows: int, cells_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_bytes = 64 * num_rows * CELL_COLUMNS * cells_at_a_time
    monkeypatch.setattr(torch_rows, "CPU_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(torch_rows, "DEVICE_BLOCK_BYTES", block_bytes)
    require_same_sums(near_identical_rows(2, num_rows, dim), device)


def test_few_columns_are_left_to_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds are wide enough to be right, as above, and no wider than they need be."""
    left: list[int] = []
    local = TorchRows._local

    def counted(rows: TorchRows, columns: NDArray[np.int64] | None = None) -> DenseRows:
        left.append(0 if columns is None else len(columns))
        return local(rows, columns)

    monkeypatch.setattr(TorchRows, "_local", counted)
    rows = TorchRows.of(np.random.default_rng(3).standard_normal((20, 20_000)).astype(np.float32))
    weights = np.random.default_rng(4).random(20)
    mixing = np.random.default_rng(5).dirichlet(np.ones(20), 20)
    rows.combine(weights)
    rows.mixed(mixing).median()
    assert sum(left) < 20
    # The mean of few values often lies between two float32: 1 of 16 sums of whole ulps does.
    rows.trimmed_mean(2)
    assert sum(left) < 20_000 / 10


@on_devices
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_entries_that_are_not_finite_are_refused(device: str, bad: float) -> None:
    matrix = honest_rows(10, 5, 300)
    matrix[2, 250] = bad
    rows = TorchRows.of(matrix, device=device)
    for operation in (
        rows.gram,
        rows.norms,
        rows.median,
        lambda: rows.combine(np.array([1.0, 1.0, 0.0, 1.0, 1.0])),
        lambda: rows.trimmed_mean(1),
        lambda: rows.mean_around_median(3),
        lambda: rows.weighted_median(np.ones(5), 1),
        lambda: rows.mixed(np.eye(5)).median(),
    ):
        with pytest.raises(AggregationError, match="rows must be finite"):
            operation()


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(AggregationError, match=r"shape \(d,\)"):
        TorchRows.of(np.zeros((3, 0), dtype=np.float32))
    with pytest.raises(AggregationError, match="must be float32"):
        TorchRows.of(np.zeros((2, 3)))  # type: ignore[arg-type]  # the refusal is under test
    rows = TorchRows.of(honest_rows(11, 5, 10))
    with pytest.raises(AggregationError, match=r"trim=3 must satisfy 0 <= 2 \* trim < n, got n=5"):
        rows.trimmed_mean(3)
    with pytest.raises(AggregationError, match="trim=-1"):
        rows.weighted_median(np.ones(5), -1)
    with pytest.raises(AggregationError, match=r"keep=6 must be in 1\.\.n=5"):
        rows.mean_around_median(6)
    with pytest.raises(AggregationError, match="must be float32 of shape"):
        rows.extended(np.zeros(9, dtype=np.float32))
    with pytest.raises(TooFewUpdatesError, match="got n=5"):
        krum(rows, num_byzantine=2)


def test_what_torch_fails_at_is_told_with_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        message = "out of memory"
        raise torch.OutOfMemoryError(message)

    rows = TorchRows.of(honest_rows(12, 5, 10))
    monkeypatch.setattr(torch, "stack", full)
    for operation in (rows.median, rows.norms):
        with pytest.raises(AggregationError, match="torch failed on device cpu: out of memory"):
            operation()


def test_memory_maps_are_read_in_place_and_not_modified(tmp_path: Path) -> None:
    matrix = honest_rows(13, 6, 50)
    path = tmp_path / "rows.bin"
    path.write_bytes(matrix.tobytes())
    mapped = np.memmap(path, dtype=np.float32, mode="r", shape=matrix.shape)
    rows = TorchRows.of(list(mapped))
    assert same_bits(rows.median(), as_rows(matrix).median())
    block: Floats | Matrix = rows.read(0, 5)
    block[:] = 0.0
    assert path.read_bytes() == matrix.tobytes()
