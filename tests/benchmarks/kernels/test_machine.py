import numpy as np
import pytest

from benchmarks.kernels import machine
from benchmarks.kernels.machine import ReadOnce, measure_matrix_product, measure_read_once
from benchmarks.kernels.rules import make_rows


@pytest.mark.parametrize("has_torch", [False, True])
def test_bandwidth_is_bytes_over_time(has_torch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "is_installed", lambda _: has_torch)
    rows = make_rows(10, 100_000, seed=0)
    once = measure_read_once(rows)
    assert once.ms > 0
    assert once.gb_per_s == pytest.approx(rows.nbytes / (once.ms / 1e3) / 1e9)
    assert once.reader in {"compiled loop", "numpy", *(["torch"] if has_torch else [])}


def test_the_shortest_read_counts() -> None:
    rows = make_rows(4, 1000, seed=0)
    for ms, is_kept in ((1e-9, True), (1e9, False)):
        before = ReadOnce(ms=ms, gb_per_s=1.0, reader="before")
        assert (measure_read_once(rows, before) is before) == is_kept


def test_the_compiled_loop_reads_every_value() -> None:
    words = np.arange(100_001, dtype=np.int32)
    assert machine._fold(words) == np.bitwise_xor.reduce(words)


def test_all_pieces_of_the_rows_are_read() -> None:
    seen = np.zeros(100_003, dtype=np.int64)

    def mark(part: slice) -> None:
        seen[part] += 1

    machine._on_all_cores(mark, seen.size)
    assert (seen == 1).all()


@pytest.mark.slow
def test_matrix_products_are_measured_with_and_without_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "_PRODUCT_ROWS", 64)
    assert measure_matrix_product() > 0
    monkeypatch.setattr(machine, "is_installed", lambda _: False)
    assert measure_matrix_product() > 0
