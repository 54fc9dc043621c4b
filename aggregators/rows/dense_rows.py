"""Rows that are float32 arrays or memory maps in this process, read by compiled kernels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from aggregators.errors import AggregationError
from aggregators.kernels.cell_products import (
    CACHE_LINE,
    CELL_COLUMNS,
    STAGE_STRIDE,
    TILE_ROWS,
    distances_of_cells,
    gram_of_cells,
    pack,
    squares_of_cells,
)
from aggregators.kernels.order_statistics import (
    MEAN_AROUND_MEDIAN,
    MEAN_OF_RANKS,
    MEDIAN,
    order_statistic,
)
from aggregators.kernels.simd import LANES
from aggregators.kernels.sorting_network import BLOCK_ROWS, merges_for
from aggregators.kernels.threads import cut, num_cores, run_pieces
from aggregators.kernels.weighted_median import weighted_median
from aggregators.kernels.weighted_sum import GROUP_ROWS, weighted_sum
from aggregators.rows.cell_tree import Node, aligned_ranges
from aggregators.rows.rows import Floats, Rows, Vector
from aggregators.rows.stored_rows import MAX_WIDE_ROWS, StoredRows, not_finite, product
from privacy.clipping import scale_vector

_SMALL: Final = 1 << 18  # values up to which starting threads costs more than it saves
_MAX_LEVEL_BYTES: Final = 1 << 21  # of one level of sums, before a thread holds only one

_NO_MATRIX: Final = np.empty((0, 0))

Addresses: TypeAlias = NDArray[np.int64]
Number = TypeVar("Number", np.float32, np.float64)


class DenseRows(StoredRows[Vector]):
    """n vectors of equal length, not copied. See `Rows` and `as_rows`.

    Results have the same bits whatever the number of threads. Working memory beside the input and
    the result is a few megabytes, and a few (n, n) matrices.
    """

    def __init__(
        self,
        vectors: Sequence[Vector],
        *,
        scales: Floats | None = None,
        matrix: Floats | None = None,
        num_threads: int | None = None,
        first_column: int = 0,
    ) -> None:
        """Wrap vectors.

        Args:
            vectors: n contiguous vectors of d float32 values.
            scales: (n,): factors applied when a row is read; None: 1.
            matrix: (m, n): the rows are matrix @ vectors; None: the vectors themselves.
            num_threads: threads that read the vectors; None: one a core.
            first_column: where the vectors start in those they are a part of; a multiple of
                `CELL_COLUMNS`. Makes the sums of parts add up to the sums of the whole.
        """
        super().__init__(vectors, scales=scales, matrix=matrix)
        self._num_threads = num_cores() if num_threads is None else num_threads
        self._first_column = first_column

    @property
    def dim(self) -> int:
        """Number of columns, d."""
        return len(self._items[0])

    def read(self, start: int, stop: int) -> Vector:
        """Copy the columns from `start` up to `stop`: (n, stop - start), not checked."""
        block = np.empty((len(self._items), stop - start), dtype=np.float32)
        for row, vector in enumerate(self._items):
            block[row] = scale_vector(vector[start:stop], float(self._scales[row]))
        if self._matrix is None:
            return block
        mixed = np.empty((self.num_rows, stop - start), dtype=np.float32)
        wide = block.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):  # whoever reads checks
            for row, weights in enumerate(self._matrix):
                mixed[row] = (weights[:, np.newaxis] * wide).sum(axis=0)
        return mixed

    def combine(self, weights: Floats, total: float = 1.0) -> Vector:
        """Sum weights_i x_i / total in row order; round once."""
        if self._matrix is not None:
            weights = product(weights[np.newaxis], self._matrix)[0]
        padding = -len(self._items) % GROUP_ROWS
        votes = np.append(weights.astype(np.float64), np.zeros(padding))
        scales = np.append(self._scales, np.ones(padding))

        def sum_piece(addresses: Addresses, start: int, stop: int, out: Vector) -> bool:
            padded = np.append(addresses, np.full(padding, addresses[0]))
            return bool(weighted_sum(padded, votes, scales, total, start, stop, out))

        return self._by_column(sum_piece)

    def median(self) -> Vector:
        """Take the median of each coordinate."""
        middle = ((self.num_rows - 1) // 2, self.num_rows // 2)
        return self._order_statistic(MEDIAN, 0, middle)

    def trimmed_mean(self, trim: int) -> Vector:
        """Average each coordinate without its `trim` smallest and largest values."""
        if not 0 <= 2 * trim < self.num_rows:
            message = f"trim={trim} must satisfy 0 <= 2 * trim < n, got n={self.num_rows}"
            raise AggregationError(message)
        return self._order_statistic(MEAN_OF_RANKS, trim, (trim, self.num_rows - trim - 1))

    def mean_around_median(self, keep: int) -> Vector:
        """Average each coordinate's `keep` values nearest to its median."""
        if not 1 <= keep <= self.num_rows:
            message = f"keep={keep} must be in 1..n={self.num_rows}"
            raise AggregationError(message)
        return self._order_statistic(MEAN_AROUND_MEDIAN, keep, (0, self.num_rows - 1))

    def weighted_median(self, weights: Floats, trim: int) -> Vector:
        """Take each coordinate's weighted median without its `trim` smallest and largest values."""
        if not 0 <= 2 * trim < self.num_rows:
            message = f"trim={trim} must satisfy 0 <= 2 * trim < n, got n={self.num_rows}"
            raise AggregationError(message)
        num_rows = self.num_rows
        plan = self._sorting((0, num_rows - 1))
        votes = np.append(weights.astype(np.float64), np.zeros(plan.num_padded - num_rows))

        def sort_piece(addresses: Addresses, start: int, stop: int, out: Vector) -> bool:
            return bool(
                weighted_median(
                    np.append(addresses, plan.no_addresses),
                    plan.scales,
                    plan.matrix,
                    plan.merges,
                    votes,
                    num_rows,
                    trim,
                    start,
                    stop,
                    out,
                )
            )

        return self._by_column(sort_piece)

    @property
    def cells(self) -> tuple[int, int]:
        """The first cell of these columns and the one past the last; the last may be partial."""
        first = self._first_column // CELL_COLUMNS
        return first, first + max(1, -(-self.dim // CELL_COLUMNS))

    def product_nodes(self, first_row: int = 0) -> Iterator[Node]:
        """Sum the products of vectors over cells; of those from `first_row` with all before them.

        Yields:
            Nodes with n (n + 1) / 2 values: row after row, those up to the diagonal.
        """
        num_rows = len(self._items)
        size = -(-len(self._items) // TILE_ROWS) * TILE_ROWS
        is_wide = len(self._items) <= MAX_WIDE_ROWS
        # Fresh memory is slow to touch for the first time: threads hand on what they used.
        spare: list[tuple[Vector, Floats]] = []

        def sum_node(
            addresses: Addresses, dim: int, cells: tuple[int, int], levels: Floats
        ) -> bool:
            try:
                staged, widened = spare.pop()
            except IndexError:
                staged = _stage(size, np.float32)
                widened = _stage(size if is_wide else 0, np.float64)
            is_finite = gram_of_cells(
                addresses,
                self._scales,
                dim,
                *cells,
                first_row,
                is_wide,
                staged,
                widened,
                levels,
            )
            spare.append((staged, widened))
            return bool(is_finite)

        return self._nodes(sum_node, (size, size), lambda total: pack(total, num_rows))

    def square_nodes(self) -> Iterator[Node]:
        """Sum the squares of each vector over cells. Yields nodes with (n,) values."""

        def sum_node(
            addresses: Addresses, dim: int, cells: tuple[int, int], levels: Floats
        ) -> bool:
            squares_of_cells(addresses, self._scales, dim, cells[0], cells[1], levels)
            return True

        return self._nodes(sum_node, (len(self._items),))

    def distance_nodes(self, pairs: NDArray[np.int64]) -> Iterator[Node]:
        """Sum the squared differences of pairs, (p, 2), over cells. Yields nodes of (p,) values."""
        rows, places = np.unique(pairs, return_inverse=True)
        local = np.ascontiguousarray(places.reshape(pairs.shape))

        def sum_node(
            addresses: Addresses, dim: int, cells: tuple[int, int], levels: Floats
        ) -> bool:
            distances_of_cells(
                addresses[rows], self._scales[rows], local, dim, cells[0], cells[1], levels
            )
            return True

        return self._nodes(sum_node, (len(pairs),))

    def _with(self, items: Sequence[Vector], scales: Floats, matrix: Floats | None) -> "DenseRows":
        return DenseRows(
            items,
            scales=scales,
            matrix=matrix,
            num_threads=self._num_threads,
            first_column=self._first_column,
        )

    def _store(self, vector: Vector) -> Vector:
        return contiguous_rows([vector])[0]

    @property
    def _threads(self) -> int:
        return 1 if self.dim * len(self._items) <= _SMALL else self._num_threads

    def _tail(self) -> list[Vector]:
        """Copy the columns that fill no whole vector, with zeros up to one."""
        start = self.dim // LANES * LANES
        tail = np.zeros((len(self._items), LANES), dtype=np.float32)
        for row, vector in enumerate(self._items):
            tail[row, : self.dim - start] = vector[start:]
        return list(tail)

    def _nodes(
        self,
        sum_node: Callable[[Addresses, int, tuple[int, int], Floats], bool],
        shape: tuple[int, ...],
        keep: Callable[[Floats], Floats] = np.copy,
    ) -> Iterator[Node]:
        """Sum cells node by node, on several threads; yield what is to be kept, left to right."""
        whole = self.dim // LANES * LANES
        origin = self._first_column
        # Kernels count columns from those of the whole, of which these are a part.
        addresses = _addresses(self._items) - 4 * origin
        first, last = self.cells
        num_cells = last - first
        max_level = max(0, (num_cells // (4 * self._threads)).bit_length() - 1)
        if 8 * int(np.prod(shape)) > _MAX_LEVEL_BYTES:
            max_level = 0
        # Fresh memory is slow to touch for the first time: threads hand on what they used.
        spare: list[Floats] = []

        def compute(node: tuple[int, int]) -> Node:
            level, index = node
            cells = (index << level, (index + 1) << level)
            levels = _taken(spare, (max_level + 1, *shape))
            levels[0] = 0.0
            covered = (cells[0], min(cells[1], -(-(origin + whole) // CELL_COLUMNS)))
            is_finite = sum_node(addresses, origin + whole, covered, levels)
            if self.dim > whole and cells[1] == last:
                tail, tail_levels = self._tail(), np.zeros((1, *shape))
                is_finite &= sum_node(_addresses(tail), LANES, (0, 1), tail_levels)
                levels[0] += tail_levels[0]
            if not is_finite:
                raise not_finite()
            values = keep(levels[0])
            spare.append(levels)
            return Node(level=level, index=index, values=values)

        ranges = list(aligned_ranges(first, last - 1, max_level=max_level))
        # The last cell, which gets the tail, stays alone: a cell is complete before it is added.
        ranges.append((0, last - 1))
        return run_pieces(compute, ranges, num_threads=self._threads)

    def _by_column(self, kernel: Callable[[Addresses, int, int, Vector], bool]) -> Vector:
        """Run a kernel that works column by column; the last columns padded to a vector."""
        out = np.empty(self.dim, dtype=np.float32)
        addresses = _addresses(self._items)
        whole = self.dim // LANES * LANES
        self._run_all(lambda piece: kernel(addresses, *piece, out), whole)
        if whole < self.dim:
            tail, tail_out = self._tail(), np.empty(LANES, dtype=np.float32)
            if not kernel(_addresses(tail), 0, LANES, tail_out):
                raise not_finite()
            out[whole:] = tail_out[: self.dim - whole]
        return out

    def _run_all(self, function: Callable[[tuple[int, int]], bool], stop: int) -> None:
        pieces = cut(stop, step=CELL_COLUMNS, num_threads=self._threads)
        if not all(run_pieces(function, pieces, num_threads=self._threads)):
            raise not_finite()

    def _order_statistic(self, statistic: int, size: int, ranks: tuple[int, int]) -> Vector:
        num_rows, plan = self.num_rows, self._sorting(ranks)

        def sort_piece(addresses: Addresses, start: int, stop: int, out: Vector) -> bool:
            return bool(
                order_statistic(
                    np.append(addresses, plan.no_addresses),
                    plan.scales,
                    plan.matrix,
                    plan.merges,
                    num_rows,
                    statistic,
                    size,
                    start,
                    stop,
                    out,
                )
            )

        return self._by_column(sort_piece)

    def _sorting(self, ranks: tuple[int, int]) -> "_Sorting":
        """Plan the sorting of the rows, as far as some ranks need it."""
        num_padded = -(-self.num_rows // BLOCK_ROWS) * BLOCK_ROWS
        merges = merges_for(
            num_padded // BLOCK_ROWS, ranks[0] // BLOCK_ROWS, ranks[1] // BLOCK_ROWS
        )
        if self._matrix is None:
            padding = num_padded - self.num_rows
            return _Sorting(
                num_padded=num_padded,
                merges=merges,
                matrix=_NO_MATRIX,
                scales=np.append(self._scales, np.ones(padding)),
                no_addresses=np.zeros(padding, dtype=np.int64),
            )
        matrix = np.zeros((num_padded, len(self._items)))
        matrix[: self.num_rows] = self._matrix
        return _Sorting(
            num_padded=num_padded,
            merges=merges,
            matrix=matrix,
            scales=self._scales,
            no_addresses=np.zeros(0, dtype=np.int64),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sorting:
    """What a sorting kernel needs beside the rows' addresses: rows come in whole blocks."""

    num_padded: int
    merges: NDArray[np.int64]
    matrix: Floats
    scales: Floats
    no_addresses: Addresses


RowsLike: TypeAlias = Rows | Sequence[Vector] | Vector
"""Rows, a sequence of (d,) float32 vectors, or an (n, d) float32 matrix."""


def as_rows(rows: RowsLike, *, num_threads: int | None = None) -> Rows:
    """Check and wrap the rows a rule is given. Contiguous ones are not copied.

    Args:
        rows: rows, or what they are made of.
        num_threads: threads that read arrays, None: one a core. Never changes a result.

    Raises:
        AggregationError: if there are no rows or columns, or the rows are not float32 vectors of
            one length.
    """
    if isinstance(rows, Rows):
        return rows
    return DenseRows(contiguous_rows(rows), num_threads=num_threads)


def contiguous_rows(rows: Sequence[Vector] | Vector) -> tuple[Vector, ...]:
    """Check that rows are float32 vectors of one length; copy those with gaps between values."""
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
    return tuple(map(_contiguous, vectors))


def _contiguous(vector: Vector) -> Vector:
    if vector.flags.c_contiguous and vector.flags.aligned:
        return vector
    return np.require(vector, requirements=["C", "A"])


def _stage(num_rows: int, kind: type[Number]) -> NDArray[Number]:
    """Make zeros to stage rows in. Vectors that straddle two cache lines are slow to read."""
    raw = np.zeros(num_rows * STAGE_STRIDE + CACHE_LINE // kind().itemsize, dtype=kind)
    first = -raw.ctypes.data % CACHE_LINE // raw.itemsize
    return raw[first : first + num_rows * STAGE_STRIDE].reshape(num_rows, STAGE_STRIDE)


def _taken(spare: list[Floats], shape: tuple[int, ...]) -> Floats:
    try:
        return spare.pop()
    except IndexError:  # asked first, another thread may take the last one in between
        return np.empty(shape)


def _addresses(vectors: Sequence[Vector]) -> Addresses:
    return np.array([vector.ctypes.data for vector in vectors], dtype=np.int64)
