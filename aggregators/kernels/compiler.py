"""The compiler behind the kernels. The only module that names numba's decorators.

Compiled code is cached beside the source, or where NUMBA_CACHE_DIR says; where neither can be
written it is compiled anew in each process, a few seconds.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from numba.extending import intrinsic as numba_intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile on first use, to run without the interpreter lock; IEEE 754 to the letter."""
    try:
        compiled: Any = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder to cache in
        compiled = numba.njit(nogil=True, error_model="numpy")(function)
    return cast("Function", compiled)


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function emit the instructions of a call itself."""
    emitted: Callable[..., Any] = numba_intrinsic(function)
    return emitted
