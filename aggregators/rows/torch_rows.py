"""Rows on a device of torch, such as a GPU, beside the vectors of this process; needs `torch`.

Every result has the bits of `DenseRows`, though a device adds in an order of its own: sums come
with a bound on how far they can be from those of the kernels, and a coordinate is left to the
kernels wherever the bound leaves open to which float32 it is rounded. Those are few of a sum, more
of a mean of few values, which often lies half way. Sums over columns follow the kernels' own order.
Inner products stay with the kernels altogether: theirs are float32 sums whose every rounding would
have to be repeated.
"""

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from aggregators.errors import AggregationError
from aggregators.kernels.cell_products import CELL_COLUMNS
from aggregators.kernels.simd import LANES
from aggregators.rows.cell_tree import Node, aligned_ranges
from aggregators.rows.dense_rows import DenseRows, contiguous_rows
from aggregators.rows.rows import Floats, Vector
from aggregators.rows.stored_rows import StoredRows, not_finite, product

CPU_BLOCK_BYTES: Final = 1 << 26
DEVICE_BLOCK_BYTES: Final = 1 << 30
"""Working memory of a block of columns; sets how many columns it has, never more than that."""

_BYTES_PER_VALUE: Final = 64  # float64 copies, temporaries and the indices of a sort

# Two sums of n products, each in some order with or without fused operations, are within
# 2 n 2**-53 of the sum of magnitudes of each other; twice that allows for the bound's own rounding.
_DOUBT: Final = 2.0**-51
_LEAST_DOUBT: Final = 2.0**-1000  # products may underflow

_Bounds: TypeAlias = tuple[Tensor, Tensor]
"""Float64 values at or below, and at or above, what the kernels would find."""


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    """A vector where the kernels read it and where the device does."""

    local: Vector
    there: Tensor


class TorchRows(StoredRows[_Item]):
    """n vectors of equal length, copied to a device. See `Rows`. Make them with `of`.

    Faster than `DenseRows` where a GPU sorts, averages or sums columns; slower on the CPU.

    Guarantees:
        Every result has the bits of `DenseRows`, whatever the device and the blocks.
    """

    def __init__(
        self,
        items: Sequence[_Item],
        *,
        scales: Floats | None = None,
        matrix: Floats | None = None,
        num_threads: int | None = None,
    ) -> None:
        """Hold vectors that are on a device; see `of`."""
        super().__init__(items, scales=scales, matrix=matrix)
        self._num_threads = num_threads
        self._device = self._items[0].there.device

    @classmethod
    def of(
        cls,
        vectors: Sequence[Vector] | Vector,
        *,
        device: str = "cpu",
        num_threads: int | None = None,
    ) -> "TorchRows":
        """Copy vectors to a device; to the CPU nothing is copied.

        Args:
            vectors: (n, d), float32. Not to be modified.
            device: as torch names it; it computes in float64.
            num_threads: of the kernels; None: one a core. Never changes a result.

        Raises:
            AggregationError: if `vectors` are not float32 vectors of one length, or torch fails:
                they must fit in the device's memory.
        """
        with _told(device):
            items = [_Item(row, _tensor(row).to(device)) for row in contiguous_rows(vectors)]
        return cls(items, num_threads=num_threads)

    @property
    def dim(self) -> int:
        """Number of columns, d."""
        return len(self._items[0].local)

    def read(self, start: int, stop: int) -> Vector:
        """Copy the columns from `start` up to `stop`: (n, stop - start), not checked."""
        return self._local().read(start, stop)

    def combine(self, weights: Floats, total: float = 1.0) -> Vector:
        """Sum weights_i x_i / total in row order; round once."""
        votes = weights
        if self._matrix is not None:
            votes = product(weights[np.newaxis], self._matrix)[0]
        factors = self._on_device(votes)

        def sum_columns(vectors: Tensor) -> _Bounds:
            low, high = _summed(vectors.double() * factors[:, None])
            return low / total, high / total

        return self._by_block(
            lambda vectors: _decided(*sum_columns(vectors)),
            lambda rows: rows.combine(weights, total),
        )

    def median(self) -> Vector:
        """Take the median of each coordinate."""

        def middle(vectors: Tensor) -> _Decided:
            rows = self._rows_of(vectors)
            return _Decided(_middle(_ordered(rows.values)).float(), rows.is_open)

        return self._by_block(middle, lambda rows: rows.median())

    def trimmed_mean(self, trim: int) -> Vector:
        """Average each coordinate without its `trim` smallest and largest values."""
        self._require_trim(trim)
        last = self.num_rows - trim

        def average(vectors: Tensor) -> _Decided:
            rows = self._rows_of(vectors)
            kept = _ordered(rows.values)[trim:last]
            low, high = (
                torch.minimum(torch.maximum((bound / len(kept)).float(), kept[0]), kept[-1])
                for bound in _summed(kept.double())
            )
            return _Decided(low, rows.is_open | (low != high))

        return self._by_block(average, lambda rows: rows.trimmed_mean(trim))

    def mean_around_median(self, keep: int) -> Vector:
        """Average each coordinate's `keep` values nearest to its median."""
        if not 1 <= keep <= self.num_rows:
            message = f"keep={keep} must be in 1..n={self.num_rows}"
            raise AggregationError(message)
        ranks = torch.arange(self.num_rows, device=self._device)[:, None]

        def average(vectors: Tensor) -> _Decided:
            rows = self._rows_of(vectors)
            values = _ordered(rows.values).double()
            middle = _middle(values)
            # Those kept are neighbours in the order: their window moves on while the value it
            # would gain is nearer than the one it would lose.
            gained, lost = values[keep:] - middle, middle - values[: len(values) - keep]
            first = (gained < lost).sum(dim=0)
            is_kept = (ranks >= first) & (ranks < first + keep)
            low, high = _summed(torch.where(is_kept, values, 0.0))
            found = _decided(low / keep, high / keep)
            return _Decided(found.values, rows.is_open | found.is_open)

        return self._by_block(average, lambda rows: rows.mean_around_median(keep))

    def weighted_median(self, weights: Floats, trim: int) -> Vector:
        """Take each coordinate's weighted median without its `trim` smallest and largest values."""
        self._require_trim(trim)
        last = self.num_rows - trim
        votes = self._on_device(weights)

        def middle(vectors: Tensor) -> _Decided:
            rows = self._rows_of(vectors)
            values, order = (rows.values + 0.0).sort(dim=0, stable=True)
            lower, upper = _weighted_middle(values[trim:last], votes[order[trim:last]])
            return _Decided((0.5 * (lower.double() + upper.double())).float(), rows.is_open)

        return self._by_block(middle, lambda rows: rows.weighted_median(weights, trim))

    def product_nodes(self, first_row: int = 0) -> Iterator[Node]:
        """Sum the products of vectors over cells; of those from `first_row` with all before them.

        The kernels do: see above.
        """
        return self._local().product_nodes(first_row)

    def square_nodes(self) -> Iterator[Node]:
        """Sum the squares of each vector over cells. Yields nodes with (n,) values."""
        return self._nodes(lambda vectors: [vectors.double()])

    def distance_nodes(self, pairs: NDArray[np.int64]) -> Iterator[Node]:
        """Sum the squared differences of pairs, (p, 2), over cells. Yields nodes of (p,) values."""
        # As many pairs at a time as there are vectors: blocks are made for so many rows.
        places, size = torch.from_numpy(pairs).to(self._device), len(self._items)
        groups = [places[start : start + size] for start in range(0, len(pairs), size)]

        def differences(vectors: Tensor) -> Iterator[Tensor]:
            for group in groups:
                yield vectors[group[:, 0]].double() - vectors[group[:, 1]]

        return self._nodes(differences)

    def _with(self, items: Sequence[_Item], scales: Floats, matrix: Floats | None) -> "TorchRows":
        return TorchRows(items, scales=scales, matrix=matrix, num_threads=self._num_threads)

    def _store(self, vector: Vector) -> _Item:
        (row,) = contiguous_rows([vector])
        return _Item(row, _tensor(row).to(self._device))

    def _local(self, columns: NDArray[np.int64] | None = None) -> DenseRows:
        """Return the rows, or some of their columns, as the kernels read them."""
        vectors = [item.local for item in self._items]
        return DenseRows(
            vectors if columns is None else [vector[columns] for vector in vectors],
            scales=self._scales,
            matrix=self._matrix,
            num_threads=self._num_threads,
        )

    def _on_device(self, values: Floats) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self._device)

    def _width(self, num_values: int) -> int:
        """Return columns that fit in the working memory, of so many values each."""
        is_cpu = self._device.type == "cpu"
        block_bytes = CPU_BLOCK_BYTES if is_cpu else DEVICE_BLOCK_BYTES
        return max(1, block_bytes // (_BYTES_PER_VALUE * num_values))

    def _vectors(self, columns: slice) -> Tensor:
        """Read some columns of the vectors, each times its factor, rounded to float32."""
        block = torch.stack([item.there[columns] for item in self._items])
        if (self._scales != 1.0).any():
            block = (block.double() * self._on_device(self._scales)[:, None]).float()
        return block

    def _rows_of(self, vectors: Tensor) -> "_Decided":
        """Make some columns of the rows from those of the vectors; open where any row is."""
        if self._matrix is None:
            return _Decided(vectors, torch.zeros_like(vectors[0], dtype=torch.bool))
        matrix, wide = self._on_device(self._matrix), vectors.double()
        sums, sizes = matrix @ wide, matrix.abs() @ wide.abs()
        doubt = sizes * (len(wide) * _DOUBT) + _LEAST_DOUBT
        found = _decided(sums - doubt, sums + doubt)
        return _Decided(found.values, found.is_open.any(dim=0))

    def _by_block(
        self,
        on_device: Callable[[Tensor], "_Decided"],
        by_kernels: Callable[[DenseRows], Vector],
    ) -> Vector:
        """Make a vector block by block; have the kernels make what the device leaves open."""
        out = np.empty(self.dim, dtype=np.float32)
        width = self._width(max(self.num_rows, len(self._items)))
        open_columns = []
        for start in range(0, self.dim, width):
            columns = slice(start, min(start + width, self.dim))
            with _told(self._device):
                vectors = self._vectors(columns)
                if not bool(vectors.isfinite().all()):
                    raise not_finite()
                found = on_device(vectors)
                # Which of two zeros it is, is chance: every zero is positive.
                out[columns] = (found.values + 0.0).cpu().numpy()
                open_columns.append(start + np.flatnonzero(found.is_open.cpu().numpy()))
        columns_left = np.concatenate(open_columns)
        if len(columns_left):
            out[columns_left] = by_kernels(self._local(columns_left))
        return out

    def _nodes(self, terms: Callable[[Tensor], Iterable[Tensor]]) -> Iterator[Node]:
        """Sum squares of what is made of the vectors over cells, in the order of the kernels."""
        num_cells = -(-self.dim // CELL_COLUMNS)
        most = max(1, self._width(len(self._items)) // CELL_COLUMNS).bit_length() - 1

        def sums(start: int, stop: int, cells: int) -> Tensor:
            vectors = pad(self._vectors(slice(start, stop)), (0, (start - stop) % LANES))
            parts = [
                _cell_sums(part.reshape(len(part), cells, -1, LANES)) for part in terms(vectors)
            ]
            return torch.cat(parts)

        for level, index in aligned_ranges(0, num_cells - 1, max_level=most):
            start = CELL_COLUMNS * (index << level)
            with _told(self._device):
                found = sums(start, start + (CELL_COLUMNS << level), 1 << level)
                while found.shape[1] > 1:
                    found = found[:, 0::2] + found[:, 1::2]
                values = found[:, 0].cpu().numpy()
            yield Node(level=level, index=index, values=values)
        # What fills no whole vector is added to the last cell when all else is in it.
        start, whole = CELL_COLUMNS * (num_cells - 1), self.dim // LANES * LANES
        with _told(self._device):
            ends = [(start, whole), (whole, self.dim)]
            found = torch.stack([sums(*end, 1)[:, 0] for end in ends if end[0] < end[1]])
            values = found.sum(dim=0).cpu().numpy()  # of two at most
        yield Node(level=0, index=num_cells - 1, values=values)

    def _require_trim(self, trim: int) -> None:
        if not 0 <= 2 * trim < self.num_rows:
            message = f"trim={trim} must satisfy 0 <= 2 * trim < n, got n={self.num_rows}"
            raise AggregationError(message)


@dataclass(frozen=True, slots=True, eq=False)
class _Decided:
    """Float32 values, and which columns of them the kernels might round otherwise."""

    values: Tensor
    is_open: Tensor


@contextmanager
def _told(device: object) -> Iterator[None]:
    """Name the device where torch fails there, as where its memory is full."""
    try:
        yield
    except RuntimeError as error:
        message = f"torch failed on device {device}: {error}"
        raise AggregationError(message) from error


def _decided(low: Tensor, high: Tensor) -> _Decided:
    """Round bounds: rounding is monotone, so what lies between equal ones is rounded alike."""
    values = low.float()
    return _Decided(values, ~(values == high.float()))  # NaN is equal to nothing


def _summed(terms: Tensor) -> _Bounds:
    """Sum float64 terms, (n, w), over rows, whatever the order."""
    sums = terms.sum(dim=0)
    doubt = terms.abs().sum(dim=0) * (len(terms) * _DOUBT) + _LEAST_DOUBT
    return sums - doubt, sums + doubt


def _ordered(values: Tensor) -> Tensor:
    return values.sort(dim=0).values


def _middle(values: Tensor) -> Tensor:
    """Average the two middle ones of sorted values, (n, w), in float64."""
    count = len(values)
    return 0.5 * (values[(count - 1) // 2].double() + values[count // 2].double())


def _weighted_middle(values: Tensor, votes: Tensor) -> tuple[Tensor, Tensor]:
    """Find the first value with at least half of the weight up to it, and the first with more.

    Weights are added in the order of the kernels: those that are not whole may tie or not.
    """
    totals = torch.zeros_like(votes[0])
    for vote in votes:
        totals = totals + vote
    lower = upper = values[-1]
    above = torch.zeros_like(totals)
    for value, vote in zip(values.flip(0), votes.flip(0), strict=True):
        twice = 2.0 * (totals - above)
        lower = torch.where(twice >= totals, value, lower)
        upper = torch.where(twice > totals, value, upper)
        above = above + vote
    return lower, upper


def _cell_sums(values: Tensor) -> Tensor:
    """Sum squares of (count, cells, steps, lanes) values: lanes side by side, then their halves."""
    sums = torch.zeros_like(values[:, :, 0])
    for step in range(values.shape[2]):
        part = values[:, :, step]
        sums += part * part
    width = LANES
    while width > 1:
        width //= 2
        sums = sums[..., :width] + sums[..., width:]
    return sums[..., 0]


def _tensor(vector: Vector) -> Tensor:
    """Let torch read a vector in place; it would warn of memory maps that cannot be written."""
    address = ctypes.cast(vector.ctypes.data, ctypes.POINTER(ctypes.c_float))
    return torch.from_numpy(np.ctypeslib.as_array(address, shape=vector.shape))
