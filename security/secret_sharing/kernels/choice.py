"""The loops over words, compiled where numba is installed and in numpy where it is not.

Both modules give the same words, bit for bit. Loading waits for the first use: a program that
never shares anything must not load a compiler.
"""

from functools import cache
from importlib import import_module
from typing import Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from security.secret_sharing.field import Words

COMPILED: Final = "security.secret_sharing.kernels.compiled_kernels"
PLAIN: Final = "security.secret_sharing.kernels.plain_kernels"


class Kernels(Protocol):
    """What both modules offer. Words are canonical; lengths agree; nothing is checked here."""

    NAME: str

    def add(self, total: Words, words: Words, bits: int) -> None:
        """Compute total += words."""
        ...

    def subtract(self, total: Words, words: Words, bits: int) -> None:
        """Compute total -= words."""
        ...

    def add_scaled(self, total: Words, words: Words, factor: np.uint64, bits: int) -> None:
        """Compute total += factor * words, for a canonical factor."""
        ...

    def multiply(self, out: Words, a: Words, b: Words, bits: int) -> None:
        """Compute out = a * b; `b` may have one word for all."""
        ...

    def dot(self, a: Words, b: Words, bits: int) -> tuple[int, int]:
        """Give (low, high): the inner product is low + high * 2^32 mod p."""
        ...

    def weighted_sum(self, out: Words, rows: Words, weights: NDArray[np.int64], bits: int) -> None:
        """Compute out = weights @ rows, for weights of a sum of magnitudes below 2^31.

        Rows may be longer than `out`: a contiguous matrix is what can be vectorised.
        """
        ...

    def mask(self, out: Words, raw: NDArray[np.unsignedinteger], bits: int) -> bool:
        """Compute out = raw mod 2^bits; tell whether a word came out as p, which is no element."""
        ...

    def encode(self, out: Words, values: NDArray[np.float32], scale: float, bits: int) -> bool:
        """Compute out = rint(values * scale) mod p; tell whether all of them fit the field."""
        ...

    def extrapolate(
        self,
        out: NDArray[np.unsignedinteger],
        first: int,
        secret: Words,
        shares: Words,
        bits: int,
    ) -> None:
        """Compute f(t), f(t+1), .. from f(0) = secret and the rows f(1) .. f(t-1) of `shares`.

        They go to the columns of `out` from `first` on, as many as `secret` is long. Rows of
        `shares` may be longer.
        """
        ...

    def extrapolate_raw(
        self,
        out: NDArray[np.unsignedinteger],
        first: int,
        secret: Words,
        raw: NDArray[np.unsignedinteger],
        bits: int,
    ) -> bool:
        """Do the same from rows of words that are not masked yet.

        Tells whether a masked word was p: then `out` holds nothing.
        """
        ...

    def fold_signed(
        self, state: Words, words: Words, rotation: tuple[NDArray[np.uint8], Words, int], bits: int
    ) -> None:
        """Add signed words into the rotated buckets of each row of a sketch."""
        ...


@cache
def kernels() -> Kernels:
    """Load the compiled kernels, or the plain ones where there is no compiler."""
    try:
        return cast("Kernels", import_module(COMPILED))
    except ImportError:
        return cast("Kernels", import_module(PLAIN))
