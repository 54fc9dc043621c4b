"""The updates of a round as rows of a matrix that is never built.

Rows may be separate arrays or memory maps; rules read them in blocks of columns, so memory beyond
the input does not grow with the dimension.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aggregators.errors import AggregationError
from privacy.clipping import scale_vector

Vector: TypeAlias = NDArray[np.float32]

BLOCK_ENTRIES: Final = 1 << 17  # entries per block of columns: 1 MiB of float64, fits in L2
_MIN_BLOCK_COLUMNS: Final = 64

_FIRST_KEY_COLUMNS: Final = 64  # enough to tell rows of real updates apart
_MAX_KEY_COLUMNS: Final = 1 << 16
_SIGN_BIT: Final = np.uint32(1 << 31)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """n vectors of equal length, each with a factor applied when it is read. See `as_rows`."""

    vectors: tuple[Vector, ...]
    scales: tuple[float, ...]

    @property
    def num_rows(self) -> int:
        """Number of rows, n."""
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """Number of columns, d."""
        return len(self.vectors[0])

    def take(self, indices: Sequence[int]) -> "Rows":
        """Select rows, in the order given, without copying them."""
        return Rows(
            vectors=tuple(self.vectors[i] for i in indices),
            scales=tuple(self.scales[i] for i in indices),
        )

    def segment(self, row: int, start: int, stop: int) -> Vector:
        """Read one row's columns from `start` up to `stop`; a view where the factor is 1."""
        return scale_vector(self.vectors[row][start:stop], self.scales[row])

    def blocks(self) -> Iterator[tuple[slice, Vector]]:
        """Read all rows, some columns at a time, left to right.

        Yields:
            The columns, and their entries as a new (n, b) float32 array.

        Raises:
            AggregationError: if an entry is NaN or infinite.
        """
        width = max(_MIN_BLOCK_COLUMNS, BLOCK_ENTRIES // self.num_rows)
        for start in range(0, self.dim, width):
            columns = slice(start, min(start + width, self.dim))
            block = np.empty((self.num_rows, columns.stop - start), dtype=np.float32)
            for row in range(self.num_rows):
                block[row] = self.segment(row, start, columns.stop)
            if not np.isfinite(block).all():
                # No row is named: a rule may have put them in another order.
                message = f"rows must be finite: NaN or infinity in columns {start}"
                message += f" to {columns.stop - 1}"
                raise AggregationError(message)
            yield columns, block


RowsLike: TypeAlias = Rows | Sequence[Vector] | Vector
"""Rows, a sequence of (d,) float32 vectors, or an (n, d) float32 matrix."""


def as_rows(rows: RowsLike) -> Rows:
    """Check and wrap the rows a rule is given, without copying them.

    Raises:
        AggregationError: if there are no rows or columns, or the rows are not float32 vectors of
            one length.
    """
    if isinstance(rows, Rows):
        return rows
    vectors = tuple(rows)
    if not vectors:
        message = "rows must hold at least one row"
        raise AggregationError(message)
    for index, vector in enumerate(vectors):
        if vector.ndim != 1 or vector.shape != vectors[0].shape or vector.shape[0] == 0:
            message = f"row {index} of shape {vector.shape} must have shape (d,), d at least 1"
            message += f", equal for all rows: the first has {vectors[0].shape}"
            raise AggregationError(message)
        if vector.dtype != np.float32:
            message = f"row {index} of type {vector.dtype} must be float32"
            raise AggregationError(message)
    return Rows(vectors=vectors, scales=(1.0,) * len(vectors))


def canonical_order(rows: Rows) -> list[int]:
    """Sort rows lexicographically by value, so that what follows cannot depend on their order.

    Returns:
        Row indices. Only rows with equal bits keep the order they came in.

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
    return [row for group in groups for row in group]


def _split(rows: Rows, group: list[int], start: int, stop: int) -> list[list[int]]:
    """Sort a group of rows by some columns and part it where those differ."""
    if len(group) == 1:
        return [group]
    keys = {row: _sort_key(rows.segment(row, start, stop)) for row in group}
    ordered = sorted(group, key=keys.__getitem__)
    return [list(part) for _, part in groupby(ordered, key=keys.__getitem__)]


def _sort_key(values: Vector) -> bytes:
    """Map floats to bytes that compare as the floats do, with -0.0 before 0.0.

    IEEE 754 floats of one sign compare as their bits do, so it is enough to flip the sign bit of
    positive values and every bit of negative ones.
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    flips = np.where(bits & _SIGN_BIT, np.uint32(0xFFFFFFFF), _SIGN_BIT)
    return (bits ^ flips).astype(">u4").tobytes()
