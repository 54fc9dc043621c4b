"""The compiler behind the compiled kernels; importing this fails where numba is not installed.

Compiled code is cached beside the source, or where NUMBA_CACHE_DIR says; where neither can be
written it is compiled anew in each process, a few seconds.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile on first use, to run without the interpreter lock."""
    try:
        compiled: Any = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder to cache in
        compiled = numba.njit(nogil=True)(function)
    return cast("Function", compiled)


def inlined(function: Function) -> Function:
    """Compile on the way of the kernels that call it; the optimizer puts it into their loops."""
    return cast("Function", numba.njit(nogil=True)(function))
