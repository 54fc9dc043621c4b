"""Whether kernels were compiled or loaded."""

import sys

import numba
import numpy as np
import pytest

from server.processes.compiling import compiles


def test_what_is_compiled_once_is_only_called_later() -> None:
    double = numba.njit(lambda values: values * 2)
    assert compiles(lambda: double(np.ones(3)))
    assert not compiles(lambda: double(np.ones(3)))


def test_without_a_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    monkeypatch.setitem(sys.modules, "numba.core", None)
    assert not compiles(lambda: called.append(1))
    assert called == [1]
