from pathlib import Path

import numpy as np
import pytest

from benchmarks.kernels import memory
from benchmarks.kernels.memory import run_measured

MB = 1 << 20


def _fill(num_bytes: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.ones(num_bytes // 4, dtype=np.float32)


def test_memory_beside_the_answer_is_counted() -> None:
    answer, seconds, extra_bytes = run_measured(_first_quarter)
    assert answer.nbytes == 16 * MB
    assert seconds > 0
    assert extra_bytes == pytest.approx(64 * MB, abs=4 * MB)


def test_the_answer_itself_is_not_counted() -> None:
    _, _, extra_bytes = run_measured(lambda: _fill(64 * MB))
    assert extra_bytes is not None
    assert extra_bytes < 4 * MB


def test_memory_freed_before_does_not_hide_what_a_call_takes() -> None:
    kept = [_fill(MB // 2) for _ in range(100)]
    del kept
    _, _, extra_bytes = run_measured(lambda: np.array([sum(map(len, _pieces()))]))
    assert extra_bytes == pytest.approx(50 * MB, abs=5 * MB)


def _first_quarter() -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return _fill(64 * MB)[: 4 * MB].copy()


def _pieces() -> list[np.ndarray[tuple[int], np.dtype[np.float32]]]:
    return [_fill(MB // 2) for _ in range(100)]


def test_systems_that_do_not_tell_get_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "none" / "clear_refs")
    answer, _, extra_bytes = run_measured(lambda: _fill(MB))
    assert answer.nbytes == MB
    assert extra_bytes is None
