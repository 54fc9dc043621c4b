"""Rows that are a torch tensor, on a GPU or wherever torch computes.

Values stay on the tensor's device; what comes back are vectors and small matrices. Products are
float64 throughout; sums over rows carry the error of every addition along (Knuth's TwoSum). Working
memory beside the tensor and one vector is a block of columns at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aggregators.cell_tree import Node
from aggregators.errors import AggregationError
from aggregators.rows import Floats, Vector, canonical_order
from aggregators.stored_rows import CLOSE_WIDE, StoredRows, not_finite, product

BLOCK_BYTES: Final = 1 << 26
"""Working memory of a block of columns; sets how many columns it has, never more than that."""

_BYTES_PER_VALUE: Final = 48  # float64 copies, temporaries and the indices of a sort

_Item: TypeAlias = int | Tensor
"""A row of the tensor, or a vector beside it."""


class TorchRows(StoredRows[_Item]):
    """The rows of a tensor, not copied. See `Rows`. Arrays are faster than tensors on the CPU.

    Results are those of `DenseRows` up to rounding, not bit for bit: inner products and distances
    to about 2**-50 of the lengths they are made of, where `DenseRows` is content with float32
    products; vectors to one rounding of float32. The weights of
    `weighted_median` are added up in another order, so those that are not whole may tie in one and
    not in the other.

    Guarantees:
        The same tensor gives the same bits on the same device with as many threads.
        Inner products and distances do not depend on the order of the rows, bit for bit.
    """

    def __init__(
        self,
        tensor: Tensor,
        *,
        items: Sequence[_Item] | None = None,
        scales: Floats | None = None,
        matrix: Floats | None = None,
    ) -> None:
        """Wrap a tensor.

        Args:
            tensor: (n, d), float32, on any device that computes in float64; n and d at least 1.
                Not to be modified.
            items: the vectors: numbers of rows of `tensor`, or (d,) tensors beside it; None: the
                rows.
            scales: (n,): factors applied when a vector is read; None: 1.
            matrix: (m, n): the rows are matrix @ vectors; None: the vectors themselves.

        Raises:
            AggregationError: if it is not such a tensor.
        """
        if tensor.ndim != 2 or 0 in tensor.shape or tensor.dtype != torch.float32:
            message = f"tensor of {tensor.dtype}{tuple(tensor.shape)} must be float32 of shape"
            message += " (n, d), n and d at least 1"
            raise AggregationError(message)
        vectors = range(len(tensor)) if items is None else items
        super().__init__(vectors, scales=scales, matrix=matrix)
        self._tensor = tensor.detach()
        self._added = [item for item in self._items if isinstance(item, Tensor)]
        self._places = self._places_of_items()

    @property
    def dim(self) -> int:
        """Number of columns, d."""
        return int(self._tensor.shape[1])

    @torch.no_grad()
    def read(self, start: int, stop: int) -> Vector:
        """Copy the columns from `start` up to `stop`: (n, stop - start), not checked."""
        block = self._averages(self._vectors(slice(start, stop)))
        return np.array(block.cpu().numpy())

    @torch.no_grad()
    def combine(self, weights: Floats, total: float = 1.0) -> Vector:
        """Sum weights_i x_i / total in row order; round once."""
        if self._matrix is not None:
            weights = product(weights[np.newaxis], self._matrix)[0]
        votes = self._on_device(weights)[:, None]

        return self._by_block(lambda vectors: _exact_sum(vectors.double() * votes) / total)

    @torch.no_grad()
    def median(self) -> Vector:
        """Take the median of each coordinate."""
        return self._by_block(lambda vectors: _middle(self._sorted(vectors)))

    @torch.no_grad()
    def trimmed_mean(self, trim: int) -> Vector:
        """Average each coordinate without its `trim` smallest and largest values."""
        self._require_trim(trim)
        last = self.num_rows - trim

        def average(vectors: Tensor) -> Tensor:
            values = self._sorted(vectors)[trim:last].double()
            mean = _exact_sum(values) / len(values)
            return torch.minimum(torch.maximum(mean, values[0]), values[-1])

        return self._by_block(average)

    @torch.no_grad()
    def mean_around_median(self, keep: int) -> Vector:
        """Average each coordinate's `keep` values nearest to its median."""
        if not 1 <= keep <= self.num_rows:
            message = f"keep={keep} must be in 1..n={self.num_rows}"
            raise AggregationError(message)
        ranks = torch.arange(self.num_rows, device=self._tensor.device)[:, None]

        def average(vectors: Tensor) -> Tensor:
            values = self._sorted(vectors).double()
            middle = _middle(values)
            # Those kept are neighbours in the order: their window moves on while the value it
            # would gain is nearer than the one it would lose.
            gained, lost = values[keep:] - middle, middle - values[: len(values) - keep]
            first = (gained < lost).sum(dim=0)
            is_kept = (ranks >= first) & (ranks < first + keep)
            return _exact_sum(torch.where(is_kept, values, 0.0)) / keep

        return self._by_block(average)

    @torch.no_grad()
    def weighted_median(self, weights: Floats, trim: int) -> Vector:
        """Take each coordinate's weighted median without its `trim` smallest and largest values."""
        self._require_trim(trim)
        last = self.num_rows - trim
        votes = self._on_device(weights)

        def middle(vectors: Tensor) -> Tensor:
            values, order = self._averages(vectors).sort(dim=0, stable=True)
            kept = values[trim:last]
            sums = _running_sums(votes[order[trim:last]])
            # The first value with at least half of the weight up to it; the first with more.
            lower = (2.0 * sums < sums[-1]).sum(dim=0, keepdim=True)
            upper = (2.0 * sums <= sums[-1]).sum(dim=0, keepdim=True).clamp(max=len(kept) - 1)
            pair = kept.gather(0, lower).double() + kept.gather(0, upper).double()
            return 0.5 * pair[0]

        return self._by_block(middle)

    @torch.no_grad()
    def product_nodes(self, first_row: int = 0) -> Iterator[Node]:
        """Sum the products of vectors from `first_row` with all; one node."""
        plain = self._with(self._items, self._scales, None)
        # Of values in the same order a product has the same bits.
        order = np.array(canonical_order(plain))
        later = np.flatnonzero(order >= first_row)
        ordered = plain.take(order.tolist())
        picked = torch.from_numpy(later).to(self._tensor.device)
        sums = torch.zeros(
            (len(later), len(order)), dtype=torch.float64, device=self._tensor.device
        )
        for columns in self._columns():
            values = ordered._vectors(columns).double()
            sums += values[picked] @ values.T
        found = sums.cpu().numpy()
        if not np.isfinite(found).all():
            raise not_finite()
        if first_row == 0:
            found = np.tril(found) + np.tril(found, -1).T
        products = np.zeros((len(order), len(order)))
        products[np.ix_(order[later], order)] = found
        yield Node(level=0, index=0, values=products[np.tril_indices(len(order))])

    @torch.no_grad()
    def square_nodes(self) -> Iterator[Node]:
        """Sum the squares of each vector; one node."""
        sums = self._on_device(np.zeros(len(self._items)))
        for columns in self._columns():
            sums += self._vectors(columns).double().square().sum(dim=1)
        yield Node(level=0, index=0, values=sums.cpu().numpy())

    @torch.no_grad()
    def distance_nodes(self, pairs: NDArray[np.int64]) -> Iterator[Node]:
        """Sum the squared differences of pairs, (p, 2); one node."""
        sums = self._on_device(np.zeros(len(pairs)))
        # As many pairs at a time as there are vectors: blocks are made for so many rows.
        size = len(self._items)
        places = torch.from_numpy(pairs).to(self._tensor.device)
        for columns in self._columns():
            values = self._vectors(columns)
            for start in range(0, len(pairs), size):
                some = places[start : start + size]
                differences = values[some[:, 0]].double() - values[some[:, 1]]
                sums[start : start + size] += differences.square().sum(dim=1)
        yield Node(level=0, index=0, values=sums.cpu().numpy())

    @property
    def _close(self) -> float:
        return CLOSE_WIDE

    def _with(self, items: Sequence[_Item], scales: Floats, matrix: Floats | None) -> "TorchRows":
        return TorchRows(self._tensor, items=items, scales=scales, matrix=matrix)

    def _store(self, vector: Vector) -> Tensor:
        return torch.tensor(vector, device=self._tensor.device)

    def _on_device(self, values: Floats) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self._tensor.device)

    def _columns(self) -> Iterator[slice]:
        """Cut the columns into blocks that fit in the working memory."""
        num_rows = max(self.num_rows, len(self._items))
        width = max(1, BLOCK_BYTES // (_BYTES_PER_VALUE * num_rows))
        for start in range(0, self.dim, width):
            yield slice(start, min(start + width, self.dim))

    def _vectors(self, columns: slice) -> Tensor:
        """Read some columns of the stored vectors, each times its factor."""
        block = self._tensor[:, columns]
        if self._added:
            block = torch.cat([block, torch.stack([vector[columns] for vector in self._added])])
        if self._places is not None:
            block = block.index_select(0, self._places)
        if (self._scales != 1.0).any():
            block = (block.double() * self._on_device(self._scales)[:, None]).float()
        return block

    def _places_of_items(self) -> Tensor | None:
        """Find the items among the tensor's rows and the vectors added to it; None: in order."""
        added = iter(range(len(self._tensor), len(self._tensor) + len(self._added)))
        places = [next(added) if isinstance(item, Tensor) else item for item in self._items]
        if places == list(range(len(self._tensor) + len(self._added))):
            return None
        return torch.tensor(places, device=self._tensor.device)

    def _averages(self, vectors: Tensor) -> Tensor:
        """Make some columns of the rows from those of the stored vectors."""
        if self._matrix is None:
            return vectors
        return (self._on_device(self._matrix) @ vectors.double()).float()

    def _sorted(self, vectors: Tensor) -> Tensor:
        # Adding 0.0 makes every zero positive: which of two zeros comes first is chance.
        return (self._averages(vectors) + 0.0).sort(dim=0).values

    def _by_block(self, function: Callable[[Tensor], Tensor]) -> Vector:
        """Make a vector block by block, of float64 values from those of the stored vectors."""
        out = torch.empty(self.dim, dtype=torch.float32, device=self._tensor.device)
        is_finite = torch.ones((), dtype=torch.bool, device=self._tensor.device)
        for columns in self._columns():
            vectors = self._vectors(columns)
            is_finite &= vectors.isfinite().all()
            out[columns] = (function(vectors) + 0.0).float()
        if not bool(is_finite):
            raise not_finite()
        values: Vector = out.cpu().numpy()
        return values

    def _require_trim(self, trim: int) -> None:
        if not 0 <= 2 * trim < self.num_rows:
            message = f"trim={trim} must satisfy 0 <= 2 * trim < n, got n={self.num_rows}"
            raise AggregationError(message)


def _middle(values: Tensor) -> Tensor:
    """Average the two middle ones of sorted values, (n, w), in float64."""
    count = len(values)
    return 0.5 * (values[(count - 1) // 2].double() + values[count // 2].double())


def _exact_sum(terms: Tensor) -> Tensor:
    """Sum float64 terms, (n, w), over rows with the error of every addition carried along."""
    errors = torch.zeros_like(terms[0])
    while len(terms) > 1:
        half = len(terms) // 2
        left, right, odd = terms[:half], terms[half : 2 * half], terms[2 * half :]
        sums = left + right
        part = sums - left
        errors += ((left - (sums - part)) + (right - part)).sum(dim=0)
        terms = torch.cat([sums, odd])
    return terms[0] + errors


def _running_sums(terms: Tensor) -> Tensor:
    """Sum each term, not negative, with all before it, (n, w); never decreasing.

    Hillis and Steele's scan: on GPUs torch's own does not always add in the same order.
    """
    sums, reach = terms, 1
    while reach < len(sums):
        sums = torch.cat([sums[:reach], sums[reach:] + sums[:-reach]])
        reach *= 2
    return sums.cummax(dim=0).values
