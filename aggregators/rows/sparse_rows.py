"""Rows that are mostly zero, as devices send that keep the largest coordinates of their update.

Memory and time follow the stored entries, never n times d. Rules that need only inner products
work as on dense rows. Rules that rank the values of a coordinate do not: where few devices send a
coordinate, the zeros of all others outvote them and the model stands still. They are refused
unless at least half of all values are stored.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aggregators.errors import AggregationError
from aggregators.rows.dense_rows import as_rows
from aggregators.rows.gram import Gram
from aggregators.rows.numerics import MAX_TERMS, order_free_sum
from aggregators.rows.rows import Floats, Rows, Vector
from aggregators.traits import MIN_RANKABLE_DENSITY
from privacy.clipping import scale_vector

Indices: TypeAlias = NDArray[np.int32] | NDArray[np.int64]

_CHUNK_ENTRIES: Final = 1 << 19
_MIN_CHUNK_COLUMNS: Final = 1 << 10
_MAX_CHUNK_COLUMNS: Final = 1 << 21
_BLOCK_VALUES: Final = 1 << 20  # 8 MiB of float64
_CROWDED: Final = 8  # a column held by more than n / 8 rows is cheaper to treat as dense
_NEAR: Final = 2.0**-6
"""Distances below this share of the squares they are the difference of lose digits."""

_MANTISSA_BITS: Final = 52


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SparseVector:
    """The entries of one row; all others are zero. Not to be modified.

    Attributes:
        indices: (k,), int32 or int64, strictly increasing, each in 0..dim - 1; k may be 0.
        values: (k,), float32, finite.
        dim: d, from 1.

    Raises:
        AggregationError: if any of that does not hold.
    """

    indices: Indices
    values: Vector
    dim: int

    def __post_init__(self) -> None:
        """Refuse entries that are no row."""
        indices, values = self.indices, self.values
        if self.dim < 1:
            message = f"dim={self.dim} of a sparse vector must be at least 1"
            raise AggregationError(message)
        if indices.ndim != 1 or indices.dtype not in (np.int32, np.int64):
            message = f"indices of {indices.dtype}{indices.shape} must be int32 or int64 of shape"
            message += " (k,)"
            raise AggregationError(message)
        if values.shape != indices.shape or values.dtype != np.float32:
            message = f"values of {values.dtype}{values.shape} must be float32, one for each of"
            message += f" {len(indices)} indices"
            raise AggregationError(message)
        if not np.isfinite(values).all():
            message = "values of a sparse vector must be finite"
            raise AggregationError(message)
        if len(indices) == 0:
            return
        if not (indices[1:] > indices[:-1]).all():
            place = int(np.argmin(indices[1:] > indices[:-1]))
            message = f"indices must be strictly increasing, got {indices[place]} before"
            message += f" {indices[place + 1]}"
            raise AggregationError(message)
        if indices[0] < 0 or indices[-1] >= self.dim:
            message = f"indices {indices[0]}..{indices[-1]} must be in 0..{self.dim - 1}"
            raise AggregationError(message)

    @classmethod
    def of_dense(cls, vector: Vector) -> "SparseVector":
        """Keep the entries of a (d,) float32 vector that are not zero."""
        if vector.ndim != 1 or vector.dtype != np.float32:
            message = f"vector of {vector.dtype}{vector.shape} must be float32 of shape (d,)"
            raise AggregationError(message)
        indices = np.flatnonzero(vector)
        return cls(indices=indices, values=vector[indices], dim=len(vector))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SparseRows:
    """n sparse vectors of one dimension. Make them with `of`.

    Attributes:
        vectors: the rows.
        scales: (n,), float64: factors applied when values are read.
        matrix: (m, n), float64: if given, the rows are `matrix` times the scaled vectors, which
            are not computed: averages of sparse rows hold the entries of all of them.

    Guarantees:
        Of rows that are not mixed, `norms` and `gram` give every row and every pair the same bits,
        and `combine` the same sum, whatever the order of the rows.
        `combine` equals the sum over dense rows, up to one rounding.
        Distances of rows that are not mixed are correct to 1e-12 of themselves, however close two
        rows are.
    """

    vectors: tuple[SparseVector, ...]
    scales: Floats
    matrix: Floats | None = None

    @classmethod
    def of(cls, vectors: Sequence[SparseVector]) -> "SparseRows":
        """Make rows of vectors, without copying them.

        Raises:
            AggregationError: if there are none, too many, or their dimensions differ.
        """
        if not 1 <= len(vectors) <= MAX_TERMS:
            message = f"vectors must hold 1..{MAX_TERMS} rows, got n={len(vectors)}"
            raise AggregationError(message)
        for index, vector in enumerate(vectors):
            if vector.dim != vectors[0].dim:
                message = f"row {index} of dim={vector.dim} must have dim={vectors[0].dim}, that"
                message += " of the first row"
                raise AggregationError(message)
        return cls(vectors=tuple(vectors), scales=np.ones(len(vectors)))

    @property
    def num_rows(self) -> int:
        """Number of rows, n."""
        return len(self.vectors) if self.matrix is None else len(self.matrix)

    @property
    def dim(self) -> int:
        """Number of columns, d."""
        return self.vectors[0].dim

    @property
    def density(self) -> float:
        """Share of the values that are stored; that of the vectors where rows are mixed."""
        stored = sum(len(vector.values) for vector in self.vectors)
        return stored / (len(self.vectors) * self.dim)

    def take(self, indices: Sequence[int]) -> "SparseRows":
        """Select rows, in the order given, without copying them."""
        picked = list(indices)
        if self.matrix is not None:
            return SparseRows(vectors=self.vectors, scales=self.scales, matrix=self.matrix[picked])
        vectors = tuple(self.vectors[i] for i in picked)
        return SparseRows(vectors=vectors, scales=self.scales[picked])

    def scaled(self, factors: Floats) -> "SparseRows":
        """Multiply row i by factors[i] >= 0; refused for mixed rows."""
        self._require_unmixed("scaled")
        return SparseRows(vectors=self.vectors, scales=self.scales * factors)

    def mixed(self, matrix: Floats) -> "SparseRows":
        """Average rows: matrix @ rows. Not rounded to float32 before they are combined."""
        product = matrix if self.matrix is None else matrix @ self.matrix
        return SparseRows(vectors=self.vectors, scales=self.scales, matrix=product)

    def extended(self, vector: Vector) -> "SparseRows":
        """Append one dense row, storing its entries that are not zero; refused for mixed rows."""
        self._require_unmixed("extended")
        row = SparseVector.of_dense(vector)
        if row.dim != self.dim:
            message = f"vector of dim={row.dim} must have dim={self.dim}, that of the rows"
            raise AggregationError(message)
        return SparseRows(vectors=(*self.vectors, row), scales=np.append(self.scales, 1.0))

    def read(self, start: int, stop: int) -> Vector:
        """Copy the columns from `start` up to `stop`, zeros and all."""
        block = np.zeros((len(self.vectors), stop - start), dtype=np.float32)
        for row, vector in enumerate(self.vectors):
            first, last = np.searchsorted(vector.indices, (start, stop))
            with np.errstate(over="ignore", invalid="ignore"):
                values = scale_vector(vector.values[first:last], float(self.scales[row]))
            block[row, vector.indices[first:last] - start] = values
        if self.matrix is None:
            return block
        mixed = np.empty((len(self.matrix), stop - start), dtype=np.float32)
        for row, weights in enumerate(self.matrix):
            mixed[row] = order_free_sum(block.astype(np.float64) * weights[:, np.newaxis])
        return mixed

    def to_dense(self) -> Rows:
        """Store the zeros too.

        Raises:
            AggregationError: if less than half of the values are stored.
        """
        if self.density < MIN_RANKABLE_DENSITY:
            self._refuse_ranking("to_dense")
        vectors = []
        for vector, entries in zip(self.vectors, self._entries(), strict=True):
            dense = np.zeros(vector.dim, dtype=np.float32)
            dense[vector.indices] = entries.values
            vectors.append(dense)
        rows = as_rows(vectors)
        return rows if self.matrix is None else rows.mixed(self.matrix)

    def norms(self) -> Floats:
        """Measure L2 norms, (n,)."""
        if self.matrix is not None:
            return self.gram().norms
        norms: Floats = np.sqrt([entries.square for entries in self._entries()])
        return norms

    def gram(self) -> Gram:
        """Compute inner products and distances.

        Cost: O(e log e + sum over columns of the square of the rows that hold it) time and
        O(e + n^2) memory for e stored entries; columns held by more than n / 8 rows take part in
        dense matrix products instead.
        """
        entries = self._entries()
        order = _content_order(entries)
        products = _Products.of([entries[row] for row in order], self.dim)
        back = np.argsort(order)
        gram = Gram(inner=products.inner, squared_distances=products.distances).take(back.tolist())
        return gram if self.matrix is None else gram.mixed(self.matrix)

    def combine(self, weights: Floats, total: float = 1.0) -> Vector:
        """Sum weights_i x_i / total, each coordinate exactly but for 2**-74 of its largest term.

        Cost: O(e) time for e stored entries, O(d) memory.
        """
        if self.matrix is not None:
            weights = order_free_sum(self.matrix * weights[:, np.newaxis])
        out = np.zeros(self.dim, dtype=np.float32)
        num_terms = len(self.vectors)
        for chunk in _chunks(self._entries(), self.dim):
            terms = chunk.values * weights[chunk.rows]
            sums = _order_free_sums(chunk.columns, terms, chunk.width, num_terms)
            out[chunk.place] = sums / total
        return out

    def median(self) -> Vector:
        """Take the median of each coordinate, if at least half of the values are stored."""
        return self._rankable("median").median()

    def trimmed_mean(self, trim: int) -> Vector:
        """Average the inner values of each coordinate, if at least half of all are stored."""
        return self._rankable("trimmed_mean").trimmed_mean(trim)

    def mean_around_median(self, keep: int) -> Vector:
        """Average the central values of each coordinate, if at least half of all are stored."""
        return self._rankable("mean_around_median").mean_around_median(keep)

    def weighted_median(self, weights: Floats, trim: int) -> Vector:
        """Take each coordinate's weighted median, if at least half of the values are stored."""
        return self._rankable("weighted_median").weighted_median(weights, trim)

    def _rankable(self, rule: str) -> Rows:
        if self.density < MIN_RANKABLE_DENSITY:
            self._refuse_ranking(rule)
        return self.to_dense()

    def _refuse_ranking(self, rule: str) -> NoReturn:
        message = f"{rule} needs dense rows: with density={self.density:.3g} below"
        message += f" {MIN_RANKABLE_DENSITY} the zeros of coordinates that few devices sent would"
        message += " outvote the senders; have more coordinates sent, or use a rule that works on"
        message += " inner products, such as multi-krum"
        raise AggregationError(message)

    def _require_unmixed(self, operation: str) -> None:
        if self.matrix is not None:
            message = f"averages of sparse rows cannot be {operation}: do that before mixing"
            raise AggregationError(message)

    def _entries(self) -> list["_Entries"]:
        """Scale the vectors and check them."""
        found = []
        for row, (vector, scale) in enumerate(zip(self.vectors, self.scales, strict=True)):
            with np.errstate(over="ignore", invalid="ignore"):
                values = scale_vector(vector.values, float(scale))
            if not np.isfinite(values).all():
                message = f"rows must be finite: NaN or infinity in row {row}"
                raise AggregationError(message)
            found.append(_Entries(indices=vector.indices, values=values.astype(np.float64)))
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Entries:
    """A row's entries in float64, where float32 values have exact squares."""

    indices: Indices
    values: Floats

    @property
    def square(self) -> float:
        return float(np.square(self.values).sum())

    def minus(self, other: "_Entries") -> "_Entries":
        """Subtract a row; what cancels is not stored."""
        if len(self.indices) == 0 or len(other.indices) == 0:
            values = np.concatenate([self.values, -other.values])
            return _Entries(indices=np.concatenate([self.indices, other.indices]), values=values)
        places = np.searchsorted(self.indices, other.indices)
        places[places == len(self.indices)] = 0
        is_shared = self.indices[places] == other.indices
        values = self.values.copy()
        values[places[is_shared]] -= other.values[is_shared]
        indices = np.concatenate([self.indices, other.indices[~is_shared]])
        values = np.concatenate([values, -other.values[~is_shared]])
        order = np.argsort(indices, kind="stable")
        order = order[values[order] != 0.0]
        return _Entries(indices=indices[order], values=values[order])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Chunk:
    """The entries of all rows in some columns, row by row.

    Attributes:
        place: where these columns lie among all.
        width: how many they are.
        rows: (e,): each entry's row.
        columns: (e,): each entry's column, counted from the first in `place`.
        values: (e,).
    """

    place: slice | NDArray[np.int64]
    width: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: Floats


def _chunks(entries: Sequence[_Entries], dim: int) -> Iterator[_Chunk]:
    """Cut rows into chunks of ascending columns, about `_CHUNK_ENTRIES` entries each."""
    stored = sum(len(row.indices) for row in entries)
    width = max(dim * _CHUNK_ENTRIES // max(stored, 1), _MIN_CHUNK_COLUMNS)
    edges = np.arange(0, dim + width, width)
    bounds = np.array([np.searchsorted(row.indices, edges) for row in entries])
    for chunk in np.flatnonzero(np.diff(bounds.sum(axis=0))).tolist():
        ends = bounds[:, chunk : chunk + 2]
        spans = [(row, slice(*pair)) for row, pair in zip(entries, ends.tolist(), strict=True)]
        columns = np.concatenate([row.indices[span] for row, span in spans]).astype(np.int64)
        start, stop = chunk * width, min(chunk * width + width, dim)
        place: slice | NDArray[np.int64] = slice(start, stop)
        count = stop - start
        if count > _MAX_CHUNK_COLUMNS:  # memory must follow the entries, not the columns
            place, columns = np.unique(columns, return_inverse=True)
            start, count = 0, len(place)
        yield _Chunk(
            place=place,
            width=count,
            rows=np.repeat(np.arange(len(entries)), np.diff(ends)[:, 0]),
            columns=columns - start,
            values=np.concatenate([row.values[span] for row, span in spans]),
        )


def _order_free_sums(
    columns: NDArray[np.int64], terms: Floats, width: int, num_terms: int
) -> Floats:
    """Sum the terms of each column as `order_free_sum` does; see there for why it is exact."""
    lane_bits = _MANTISSA_BITS - max(1, (num_terms - 1).bit_length())
    largest = np.zeros(width)
    np.maximum.at(largest, columns, np.abs(terms))
    exponents = np.frexp(largest)[1] - lane_bits
    sums = np.zeros(width)
    for lane in (exponents, exponents - lane_bits):
        shift = np.ldexp(1.5, lane + _MANTISSA_BITS)[columns]
        multiples = (terms + shift) - shift
        terms = terms - multiples
        sums += np.bincount(columns, multiples, width)
    return sums


def _content_order(entries: Sequence[_Entries]) -> list[int]:
    """Sort rows by what they hold, so that nothing computed in that order depends on another."""
    keys = [(len(row.indices), row.square) for row in entries]
    counts = Counter(keys)
    digests = [
        _digest(row) if counts[key] > 1 else b"" for row, key in zip(entries, keys, strict=True)
    ]
    return sorted(range(len(entries)), key=lambda row: (keys[row], digests[row]))


def _digest(row: _Entries) -> bytes:
    digest = hashlib.blake2b(row.indices.astype(np.int64).tobytes(), digest_size=32)
    digest.update(row.values.tobytes())
    return digest.digest()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Products:
    """Inner products and squared distances, (n, n) each, symmetric."""

    inner: Floats
    distances: Floats

    @classmethod
    def of(cls, entries: Sequence[_Entries], dim: int) -> "_Products":
        """Compute them, distances that are small for their rows a second time.

        |x|^2 + |y|^2 - 2 <x, y> loses digits where x is close to y. Such rows are computed again
        as differences from one of them, which are exact but for a rounding; fewer rows each time.
        """
        inner, centred = _accumulate(entries, dim)
        squares = np.diagonal(centred)
        sums = squares[:, np.newaxis] + squares
        distances = np.maximum(sums - 2.0 * centred, 0.0)
        np.fill_diagonal(distances, 0.0)
        np.fill_diagonal(inner, [row.square for row in entries])
        is_near = distances < _NEAR * sums
        np.fill_diagonal(is_near, val=False)
        while is_near.any():
            pivot = int(np.argmax(is_near.sum(axis=1)))
            members = np.flatnonzero(is_near[pivot]).tolist()
            moved = [entries[row].minus(entries[pivot]) for row in members]
            distances[pivot, members] = distances[members, pivot] = [row.square for row in moved]
            block = np.ix_(members, members)
            if is_near[block].any():
                again = cls.of(moved, dim).distances
                distances[block] = np.where(is_near[block], again, distances[block])
            is_near[block] = False
            is_near[pivot] = is_near[:, pivot] = False
        return cls(inner=inner, distances=distances)


def _accumulate(entries: Sequence[_Entries], dim: int) -> tuple[Floats, Floats]:
    """Compute inner products of rows, and of rows moved so that they are closer to zero."""
    n = len(entries)
    inner, centred = np.zeros((n, n)), np.zeros((n, n))
    for chunk in _chunks(entries, dim):
        counts = np.bincount(chunk.columns, minlength=chunk.width)
        held = counts[chunk.columns]
        is_crowded = held * _CROWDED > n
        # A column that only one row holds adds to that row's square and to nothing else.
        alone = chunk.values[~is_crowded]
        own = np.bincount(chunk.rows[~is_crowded], np.square(alone), n)
        centred[np.arange(n), np.arange(n)] += own
        shared = _shared(chunk, np.flatnonzero(~is_crowded & (held > 1)), n)
        inner += shared
        centred += shared
        for block, crowd in _crowded_blocks(chunk, counts, is_crowded, n):
            inner += block @ block.T
            middle = _lower_median(block, crowd)
            block[:, middle[0]] -= middle[1]
            centred += block @ block.T
    return inner, centred


def _shared(chunk: _Chunk, places: NDArray[np.int64], n: int) -> Floats:
    """Sum the products of every two entries of a column, over columns held by few rows."""
    keys = chunk.columns[places] * n + chunk.rows[places]
    places = places[np.argsort(keys)]
    columns, rows, values = chunk.columns[places], chunk.rows[places], chunk.values[places]
    sums = np.zeros(n * n)
    firsts = np.arange(len(places))
    for step in range(1, n):
        firsts = firsts[: np.searchsorted(firsts, len(places) - step)]
        firsts = firsts[columns[firsts + step] == columns[firsts]]
        if len(firsts) == 0:
            break
        seconds = firsts + step
        pairs = rows[firsts] * n + rows[seconds]
        sums += np.bincount(pairs, values[firsts] * values[seconds], n * n)
    upper = sums.reshape(n, n)
    products: Floats = upper + upper.T
    return products


def _crowded_blocks(
    chunk: _Chunk, counts: NDArray[np.int64], is_crowded: NDArray[np.bool_], n: int
) -> Iterator[tuple[Floats, NDArray[np.int64]]]:
    """Lay the columns that many rows hold out as dense blocks, with the rows that hold each."""
    crowded = np.flatnonzero(counts * _CROWDED > n)
    place = np.zeros(chunk.width, dtype=np.int64)
    place[crowded] = np.arange(len(crowded))
    rows, values = chunk.rows[is_crowded], chunk.values[is_crowded]
    places = place[chunk.columns[is_crowded]]
    width = max(64, _BLOCK_VALUES // n)
    for start in range(0, len(crowded), width):
        inside = (places >= start) & (places < start + width)
        crowd = counts[crowded[start : start + width]]
        block = np.zeros(n * len(crowd))
        block[rows[inside] * len(crowd) + places[inside] - start] = values[inside]
        yield block.reshape(n, len(crowd)), crowd


def _lower_median(block: Floats, crowd: NDArray[np.int64]) -> tuple[NDArray[np.int64], Floats]:
    """Select the lower middle value of the columns where it can differ from zero.

    Rows are moved there because no single row can drag it away from the others.
    """
    n = len(block)
    columns = np.flatnonzero(2 * crowd >= n)
    values = np.ascontiguousarray(block[:, columns].T)
    middle = (n - 1) // 2
    values.partition(middle, axis=1)
    return columns, values[:, middle]
