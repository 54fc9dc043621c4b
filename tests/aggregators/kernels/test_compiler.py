from typing import Any

import numba
import pytest

from aggregators.kernels.compiler import kernel


def triple(value: float) -> float:
    return 3.0 * value


def test_kernels_are_compiled_also_where_nothing_can_be_cached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = numba.njit

    def without_folder(*functions: Any, cache: bool = False, **options: Any) -> Any:
        if cache:
            message = "cannot cache function: no locator available"
            raise RuntimeError(message)
        return real(*functions, **options)

    monkeypatch.setattr(numba, "njit", without_folder)
    assert kernel(triple)(2.0) == 6.0


def test_kernels_do_not_raise_on_division_by_zero() -> None:
    def invert(value: float) -> float:
        return 1.0 / value

    assert kernel(invert)(0.0) == float("inf")
