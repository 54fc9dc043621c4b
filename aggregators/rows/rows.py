"""The updates of a round as n rows, whatever holds them.

A rule is written once over the few operations of `Rows`; dense arrays and memory maps, sparse
updates, tensors on a GPU and rows sharded over a cluster each answer them in their own way.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Final, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from aggregators.rows.gram import Gram

Vector: TypeAlias = NDArray[np.float32]
Floats: TypeAlias = NDArray[np.float64]

_FIRST_KEY_COLUMNS: Final = 64  # enough to tell rows of real updates apart
_MAX_KEY_COLUMNS: Final = 1 << 16
_SIGN_BIT: Final = np.uint32(1 << 31)


@runtime_checkable
class Rows(Protocol):
    """n rows of d float32 values. Immutable.

    Every operation that reads values raises `AggregationError` if it meets one that is not
    finite, or if this kind of rows does not support it.
    """

    @property
    def num_rows(self) -> int:
        """Number of rows, n."""
        ...

    @property
    def dim(self) -> int:
        """Number of columns, d."""
        ...

    def take(self, indices: Sequence[int]) -> "Rows":
        """Select rows, in the order given, without copying them."""
        ...

    def scaled(self, factors: Floats) -> "Rows":
        """Multiply row i by factors[i] >= 0 in float64, rounding once to float32."""
        ...

    def mixed(self, matrix: Floats) -> "Rows":
        """Average rows: matrix @ rows, (m, n) times (n, d), in float64, rounded once to float32.

        Distances between rows of `matrix` with equal sums, as averages have, lose no digits.
        """
        ...

    def extended(self, vector: Vector) -> "Rows":
        """Append one row."""
        ...

    def read(self, start: int, stop: int) -> Vector:
        """Copy the columns from `start` up to `stop`: (n, stop - start), not checked."""
        ...

    def norms(self) -> Floats:
        """Measure L2 norms, (n,)."""
        ...

    def gram(self) -> Gram:
        """Compute inner products and distances, once for these rows."""
        ...

    def combine(self, weights: Floats, total: float = 1.0) -> Vector:
        """Sum weights_i x_i / total in row order, in compensated float64; round once.

        Weights are finite; `total` is above 0.
        """
        ...

    def median(self) -> Vector:
        """Take the median of each coordinate; for even n the average of the two middle values."""
        ...

    def trimmed_mean(self, trim: int) -> Vector:
        """Average each coordinate without its `trim` smallest and largest values; 2 trim < n."""
        ...

    def mean_around_median(self, keep: int) -> Vector:
        """Average each coordinate's `keep` values nearest to its median; 1 <= keep <= n.

        Of two values equally near the lesser is kept.
        """
        ...

    def weighted_median(self, weights: Floats, trim: int) -> Vector:
        """Take each coordinate's weighted median of all but its `trim` smallest and largest values.

        Where the weight on both sides is equal: the average of the two middle values.
        """
        ...


def canonical_order(rows: Rows, keys: Sequence[Floats] = ()) -> list[int]:
    """Sort rows lexicographically by value, so that what follows cannot depend on their order.

    Args:
        rows: n rows.
        keys: (n,) arrays that tell rows of equal values apart, the first one first.

    Returns:
        Row indices. Only rows with equal bits and equal keys keep the order they came in.

    Guarantees:
        Positive scaling and translation keep the order, up to rounding.

    Cost: O(n log n) for rows that differ early; O(n d) time if all are equal.
    """
    groups = [list(range(rows.num_rows))]
    start, width = 0, _FIRST_KEY_COLUMNS
    while start < rows.dim and any(len(group) > 1 for group in groups):
        stop = min(start + width, rows.dim)
        groups = [part for group in groups for part in _split(rows, group, start, stop)]
        start, width = stop, min(4 * width, _MAX_KEY_COLUMNS)
    for group in (group for group in groups if len(group) > 1):
        group.sort(key=lambda row: tuple(key[row] for key in keys))
    return [row for group in groups for row in group]


def _split(rows: Rows, group: list[int], start: int, stop: int) -> list[list[int]]:
    """Sort a group of rows by some columns and part it where those differ."""
    if len(group) == 1:
        return [group]
    keys = dict(zip(group, _sort_keys(rows.take(group).read(start, stop)), strict=True))
    ordered = sorted(group, key=keys.__getitem__)
    return [list(part) for _, part in groupby(ordered, key=keys.__getitem__)]


def _sort_keys(values: Vector) -> list[bytes]:
    """Map rows of floats to bytes that compare as the floats do, with -0.0 before 0.0.

    IEEE 754 floats of one sign compare as their bits do, so it is enough to flip the sign bit of
    positive values and every bit of negative ones.
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    flips = np.where(bits & _SIGN_BIT, np.uint32(0xFFFFFFFF), _SIGN_BIT)
    raw = (bits ^ flips).astype(">u4").tobytes()
    size = len(raw) // len(values)
    return [raw[start : start + size] for start in range(0, len(raw), size)]
