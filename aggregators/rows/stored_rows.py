"""Rows that are stored vectors or averages of them: all that holds wherever they are stored."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from aggregators.errors import AggregationError
from aggregators.rows.cell_tree import Node, fold
from aggregators.rows.gram import Gram
from aggregators.rows.rows import Floats, Vector

MAX_WIDE_ROWS: Final = 16
"""Up to so many rows products are float64: reading the rows takes as long anyway."""

# A distance below this part of the two squared lengths has lost too many digits of the products:
# it is measured again by differences. Float32 products are right to about 2**-20, float64 ones to
# 2**-50.
_CLOSE: Final = 2.0**-6
CLOSE_WIDE: Final = 2.0**-20

Item = TypeVar("Item")


class StoredRows(ABC, Generic[Item]):
    """n stored vectors, each times a factor, or averages of them. See `Rows`.

    A subclass knows how vectors are stored and reads them. Sums over all columns come from it as
    nodes of one tree, so who holds which columns need not change their bits.
    """

    def __init__(
        self, items: Sequence[Item], *, scales: Floats | None = None, matrix: Floats | None = None
    ) -> None:
        """Hold what stands for the vectors.

        Args:
            items: one for each of n vectors.
            scales: (n,): factors applied when a row is read; None: 1.
            matrix: (m, n): the rows are matrix @ vectors; None: the vectors themselves.
        """
        self._items = tuple(items)
        self._scales = np.ones(len(self._items)) if scales is None else scales
        self._matrix = matrix
        self._gram: Gram | None = None
        self._derive_gram: Callable[[], Gram] | None = None
        self._unmixed: Self | None = None  # what mixed rows are averages of

    @property
    def num_rows(self) -> int:
        """Number of rows, n."""
        return len(self._items) if self._matrix is None else len(self._matrix)

    @property
    @abstractmethod
    def dim(self) -> int:
        """Number of columns, d."""

    @abstractmethod
    def product_nodes(self, first_row: int = 0) -> Iterable[Node]:
        """Sum the products of vectors over cells; of those from `first_row` with all before them.

        Yields:
            Nodes with n (n + 1) / 2 values: row after row, those up to the diagonal.
        """

    @abstractmethod
    def square_nodes(self) -> Iterable[Node]:
        """Sum the squares of each vector over cells. Yields nodes with (n,) values."""

    @abstractmethod
    def distance_nodes(self, pairs: NDArray[np.int64]) -> Iterable[Node]:
        """Sum the squared differences of pairs, (p, 2), over cells. Yields nodes of (p,) values."""

    @property
    def _close(self) -> float:
        """The part of two squared lengths below which a distance is measured by differences."""
        return CLOSE_WIDE if len(self._items) <= MAX_WIDE_ROWS else _CLOSE

    @abstractmethod
    def _with(self, items: Sequence[Item], scales: Floats, matrix: Floats | None) -> Self:
        """Make other rows of vectors stored in the same way."""

    @abstractmethod
    def _store(self, vector: Vector) -> Item:
        """Store one more vector."""

    def take(self, indices: Sequence[int]) -> Self:
        """Select rows, in the order given, without copying them."""
        picked = list(indices)
        if self._matrix is not None:
            taken = self._with(self._items, self._scales, self._matrix[picked])
            taken._unmixed = self._plain
        else:
            items = tuple(self._items[index] for index in picked)
            taken = self._with(items, self._scales[picked], None)
        # Products depend on two rows alone, but on their number through the precision.
        if self._matrix is not None or sorted(picked) == list(range(self.num_rows)):
            taken._derive_gram = lambda: self.gram().take(picked)
        return taken

    def scaled(self, factors: Floats) -> Self:
        """Multiply row i by factors[i] >= 0."""
        if self._matrix is None:
            return self._with(self._items, self._scales * factors, None)
        scaled = self._with(self._items, self._scales, self._matrix * factors[:, np.newaxis])
        scaled._derive_gram = lambda: self.gram().scaled(factors)
        scaled._unmixed = self._plain
        return scaled

    def mixed(self, matrix: Floats) -> Self:
        """Average rows: matrix @ rows."""
        inner = matrix if self._matrix is None else product(matrix, self._matrix)
        mixed = self._with(self._items, self._scales, np.ascontiguousarray(inner))
        mixed._derive_gram = lambda: self.gram().mixed(matrix)
        mixed._unmixed = self._plain
        return mixed

    def extended(self, vector: Vector) -> Self:
        """Append one row; its products are added to those of the others."""
        if vector.shape != (self.dim,) or vector.dtype != np.float32:
            message = f"vector of {vector.dtype}{vector.shape} must be float32 of shape"
            message += f" (d,)=({self.dim},), as the rows are"
            raise AggregationError(message)
        if self._matrix is not None:
            unmixed = self._plain.extended(vector)
            matrix = np.zeros((self.num_rows + 1, unmixed.num_rows))
            matrix[:-1, :-1] = self._matrix
            matrix[-1, -1] = 1.0
            return unmixed.mixed(matrix)
        extended = self._with(
            (*self._items, self._store(vector)), np.append(self._scales, 1.0), None
        )
        extended._derive_gram = lambda: extended._grown_gram(self.gram())
        return extended

    def norms(self) -> Floats:
        """Measure L2 norms, (n,)."""
        if self._matrix is not None:
            return self.gram().norms
        squares = fold(self.square_nodes())
        if not np.isfinite(squares).all():
            raise not_finite()
        norms: Floats = np.sqrt(squares)
        return norms

    def gram(self) -> Gram:
        """Compute inner products and distances, once for these rows."""
        if self._gram is None:
            if self._derive_gram is not None:
                self._gram = self._derive_gram()
            else:
                self._gram = self._refined(self._symmetric(fold(self.product_nodes())))
        return self._gram

    @property
    def _plain(self) -> Self:
        return self if self._unmixed is None else self._unmixed

    def _symmetric(self, products: Floats) -> Floats:
        """Complete what `product_nodes` adds up to, as (n, n)."""
        size = len(self._items)
        inner = np.empty((size, size))
        start = 0
        for row in range(size):
            inner[row, : row + 1] = inner[: row + 1, row] = products[start : start + row + 1]
            start += row + 1
        return inner

    def _refined(self, inner: Floats, first_row: int = 0) -> Gram:
        """Derive distances from products; measure those again that lost digits."""
        gram = Gram.from_inner(inner)
        pairs = self._close_pairs(gram, first_row=first_row)
        if len(pairs):
            exact = fold(self.distance_nodes(pairs))
            gram.squared_distances[pairs[:, 0], pairs[:, 1]] = exact
            gram.squared_distances[pairs[:, 1], pairs[:, 0]] = exact
        return gram

    def _close_pairs(self, gram: Gram, *, first_row: int) -> NDArray[np.int64]:
        """List the pairs (i, j), i > j, i >= first_row, too close for their products; (p, 2)."""
        squares = np.diagonal(gram.inner)
        # Not the sum of the squares: it could overflow where neither does.
        limits = self._close * squares[:, np.newaxis] + self._close * squares
        found = np.tril(gram.squared_distances <= limits, -1) & (limits > 0.0)
        found[:first_row] = False
        return np.argwhere(found).astype(np.int64)

    def _grown_gram(self, before: Gram) -> Gram:
        """Compute the products of the last row with all; those of the others are known."""
        known = before.num_rows
        products = fold(self.product_nodes(known))
        inner = np.empty((known + 1, known + 1))
        inner[:known, :known] = before.inner
        inner[known] = inner[:, known] = products[-known - 1 :]
        gram = self._refined(inner, first_row=known)
        gram.squared_distances[:known, :known] = before.squared_distances
        return gram


def product(left: Floats, right: Floats) -> Floats:
    """Multiply small matrices in a fixed order, which BLAS does not promise."""
    return np.array([(row[:, np.newaxis] * right).sum(axis=0) for row in left])


def not_finite() -> AggregationError:
    """Make the error for rows that hold NaN or infinity."""
    # No row is named: a rule may have put them in another order.
    return AggregationError("rows must be finite: NaN or infinity found")
