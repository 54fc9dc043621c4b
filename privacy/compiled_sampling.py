"""The attempts of the discrete Gaussian sampler, compiled; importing this fails without numba.

The same integers as `plain_sampling`, bit for bit. Its formulas are written out again here: cached
code is made anew only when this very file changes. It is cached beside the source, or where
NUMBA_CACHE_DIR says.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from privacy.sampling_table import SamplingTable

Words = NDArray[np.uint64]
Function = TypeVar("Function", bound=Callable[..., Any])

NAME: Final = "numba"

_LOW: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)
_ONE: Final = np.uint64(1)
_TOP_BIT: Final = np.uint64(63)
_TOP_BYTE: Final = np.uint64(56)
_REST: Final = np.uint64((1 << 56) - 1)
_TWO: Final = np.uint64(2)
_THREE: Final = np.uint64(3)
_FOUR: Final = np.uint64(4)
_FIVE: Final = np.uint64(5)
_SIX: Final = np.uint64(6)


def _inlined(function: Function) -> Function:
    return cast("Function", numba.njit(nogil=True)(function))


def _kernel(function: Function) -> Function:
    try:
        compiled: Any = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder to cache in
        compiled = numba.njit(nogil=True)(function)
    return cast("Function", compiled)


@_inlined
def _high_product(a: np.uint64, b: np.uint64) -> np.uint64:
    a_high, a_low, b_high, b_low = a >> _HALF, a & _LOW, b >> _HALF, b & _LOW
    middle = a_high * b_low + ((a_low * b_low) >> _HALF)
    carried = (middle & _LOW) + a_low * b_high
    return np.uint64(a_high * b_high + (middle >> _HALF) + (carried >> _HALF))


@_inlined
def _one_minus_exp(rest: np.uint64) -> np.uint64:
    term = rest // _SIX
    part = rest // _FIVE
    term = part - _high_product(part, term)
    part = rest // _FOUR
    term = part - _high_product(part, term)
    part = rest // _THREE
    term = part - _high_product(part, term)
    part = rest // _TWO
    term = part - _high_product(part, term)
    return np.uint64(rest - _high_product(rest, term))


@_kernel
def _fill(
    out: NDArray[np.int64],
    words: Words,
    guide: NDArray[np.int64],
    tables: tuple[Words, Words, Words],
    scalars: tuple[np.uint64, np.uint64, np.uint64, np.uint64],
) -> int:
    thresholds, slopes, exps = tables
    curvature, step_bits, mask, fraction_shift = scalars
    written = 0
    for start in range(0, words.shape[0], 3):
        if written == out.shape[0]:
            break
        first, second, third = words[start], words[start + 1], words[start + 2]
        step = guide[np.int64(first >> _TOP_BYTE)]
        while step < thresholds.shape[0] and thresholds[step] <= first:
            step += 1
        offset = second & mask
        fraction = (second << fraction_shift) << _ONE
        exponent = _high_product(fraction, slopes[step] + _high_product(fraction, curvature))
        cell = exps[np.int64(exponent >> _TOP_BYTE)]
        if (third >> _ONE) >= cell - _high_product(cell, _one_minus_exp(exponent & _REST)):
            continue
        magnitude = np.int64((np.uint64(step) << step_bits) | offset)
        if (second >> _TOP_BIT) != np.uint64(0):
            if magnitude == 0:
                continue
            magnitude = -magnitude
        out[written] = magnitude
        written += 1
    return written


def attempt(out: NDArray[np.int64], words: Words, table: SamplingTable) -> int:
    """Make one attempt of every three words; write the accepted ones to `out` until it is full."""
    tables = (table.thresholds, table.slopes, table.exps)
    scalars = (table.curvature, table.step_bits, table.mask, table.fraction_shift)
    return int(_fill(out, words, table.guide, tables, scalars))
