"""Rows sharded by coordinate over a Ray cluster; needs the `ray` extra.

Each shard is an actor that holds some columns of all rows and reads them with the kernels of
`DenseRows`. Sums over all columns come back as nodes of one tree and are added up here, vectors as
the shards' columns one after the other; so every result has the bits of the local one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from aggregators.cell_tree import Node, merged
from aggregators.dense_rows import DenseRows, contiguous_rows
from aggregators.errors import AggregationError
from aggregators.kernels.gram import CELL_COLUMNS
from aggregators.rows import Floats, Vector
from aggregators.stored_rows import StoredRows

DEFAULT_TIMEOUT_S: Final = 600.0

_STEPS_PER_SHARD: Final = 16  # shards start at multiples of a power of two: fewer nodes to send
_FLOAT32_BYTES: Final = 4

Answer = TypeVar("Answer")

Ref: TypeAlias = ray.ObjectRef[Any]
"""An object in the cluster's store, or one that will be there."""

Span: TypeAlias = tuple[int, int]
"""The first column and the one past the last."""


@dataclass(frozen=True, slots=True, eq=False)
class _Added:
    """A vector appended to the rows: one object of the cluster's store a shard."""

    parts: tuple[Ref, ...]


_Item: TypeAlias = int | _Added


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """Rows as one shard is told of them: all it needs beside the columns it holds.

    Attributes:
        items: numbers of vectors the shard holds, or where in the store its part of one is.
        factors: where in the store scales and matrix of `StoredRows` are.
    """

    items: tuple[Any, ...]
    factors: Ref


@dataclass(frozen=True, slots=True, eq=False)
class _Shards:
    """Actors, the columns each holds, and how long to wait for an answer."""

    actors: tuple[Any, ...]
    spans: tuple[Span, ...]
    timeout_s: float

    def answer(self, ref: ray.ObjectRef[Answer], shard: int) -> Answer:
        """Wait for a shard's answer.

        Raises:
            AggregationError: the one raised by the shard; or if it died or did not answer in time.
        """
        start, stop = self.spans[shard]
        name = f"shard {shard} of {len(self.actors)}, columns {start} to {stop - 1},"
        try:
            return ray.get(ref, timeout=self.timeout_s)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, AggregationError):
                raise type(cause)(str(cause)) from error
            message = f"{name} failed: {cause!r}"
            raise AggregationError(message) from error
        except GetTimeoutError as error:
            message = f"{name} did not answer within timeout_s={self.timeout_s}"
            raise AggregationError(message) from error
        except RayError as error:
            message = f"{name} has died: {error}"
            raise AggregationError(message) from error


class RayRows(StoredRows[_Item]):
    """n vectors of equal length whose columns are spread over a Ray cluster. See `Rows`.

    Make them with `of` or `from_files`, after `ray.init`. Of what is derived from them (`take`,
    `scaled`, ...) only the few numbers that describe it are sent. Shards live until `close` or
    until nobody holds any of these rows.

    Guarantees:
        Every result has the bits of `DenseRows`, whatever the number of shards.
        A shard that dies or does not answer raises `AggregationError`.
    """

    def __init__(
        self,
        shards: _Shards,
        items: Sequence[_Item],
        *,
        scales: Floats | None = None,
        matrix: Floats | None = None,
    ) -> None:
        """Describe rows that shards hold; see `of` and `from_files`."""
        super().__init__(items, scales=scales, matrix=matrix)
        self._shards = shards
        self._factors: Ref | None = None

    @classmethod
    def of(
        cls,
        vectors: Sequence[Vector] | Vector,
        *,
        num_shards: int | None = None,
        num_threads: int | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> "RayRows":
        """Copy vectors of this process to shards.

        Args:
            vectors: (n, d), float32.
            num_shards: actors to start, fewer if there are not as many cells of columns; None:
                one a machine of the cluster. Never changes a result.
            num_threads: threads of each shard; None: one a core of its machine. Never changes a
                result.
            timeout_s: seconds to wait for any one answer of a shard.

        Raises:
            AggregationError: if `vectors` are not float32 vectors of one length, an argument is
                out of range, Ray is not initialised or a shard could not be started.
        """
        rows = contiguous_rows(vectors)
        shards = _start(len(rows[0]), num_shards, num_threads, timeout_s)
        loads = []
        for actor, (start, stop) in zip(shards.actors, shards.spans, strict=True):
            # As plain arrays, slices go to the store without another copy; memory maps do not.
            part = [np.asarray(row[start:stop]) for row in rows]
            loads.append(actor.hold.remote(ray.put(part)))
        for shard, load in enumerate(loads):
            shards.answer(load, shard)
        return cls(shards, range(len(rows)))

    @classmethod
    def from_files(
        cls,
        files: Sequence[tuple[Path, int]],
        *,
        dim: int,
        num_shards: int | None = None,
        num_threads: int | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> "RayRows":
        """Have each shard map its columns of files, which never pass through this process.

        Args:
            files: n files of little-endian float32 values, at the same place on every machine,
                and the byte at which the values start in each, a multiple of 4.
            dim: d, values in each.
            num_shards: as in `of`.
            num_threads: as in `of`.
            timeout_s: as in `of`.

        Raises:
            AggregationError: if a file cannot be read or is too short, an argument is out of
                range, Ray is not initialised or a shard could not be started.
        """
        if not files:
            message = "files must hold at least one file"
            raise AggregationError(message)
        for path, offset_bytes in files:
            if offset_bytes < 0 or offset_bytes % _FLOAT32_BYTES:
                message = f"offset_bytes={offset_bytes} of {path} must be a multiple of 4, at"
                message += " least 0"
                raise AggregationError(message)
        shards = _start(dim, num_shards, num_threads, timeout_s)
        loads = [
            actor.map_files.remote(list(files), span)
            for actor, span in zip(shards.actors, shards.spans, strict=True)
        ]
        for shard, load in enumerate(loads):
            shards.answer(load, shard)
        return cls(shards, range(len(files)))

    def close(self) -> None:
        """Stop the shards of these rows and of all derived from them or they from."""
        for actor in self._shards.actors:
            ray.kill(actor)

    @property
    def dim(self) -> int:
        """Number of columns, d."""
        return self._shards.spans[-1][1]

    def read(self, start: int, stop: int) -> Vector:
        """Copy the columns from `start` up to `stop`: (n, stop - start), not checked."""
        block = np.empty((self.num_rows, stop - start), dtype=np.float32)
        waiting = []
        for shard, (first, last) in enumerate(self._shards.spans):
            left, right = max(start, first), min(stop, last)
            if left < right:
                ref = self._ask(shard, "values", "read", left - first, right - first)
                waiting.append((ref, shard, left - start, right - start))
        for ref, shard, left, right in waiting:
            block[:, left:right] = self._shards.answer(ref, shard)
        return block

    def combine(self, weights: Floats, total: float = 1.0) -> Vector:
        """Sum weights_i x_i / total in row order; round once."""
        return self._by_column("combine", weights, total)

    def median(self) -> Vector:
        """Take the median of each coordinate."""
        return self._by_column("median")

    def trimmed_mean(self, trim: int) -> Vector:
        """Average each coordinate without its `trim` smallest and largest values."""
        return self._by_column("trimmed_mean", trim)

    def mean_around_median(self, keep: int) -> Vector:
        """Average each coordinate's `keep` values nearest to its median."""
        return self._by_column("mean_around_median", keep)

    def weighted_median(self, weights: Floats, trim: int) -> Vector:
        """Take each coordinate's weighted median without its `trim` smallest and largest values."""
        return self._by_column("weighted_median", weights, trim)

    def product_nodes(self, first_row: int = 0) -> Iterator[Node]:
        """Sum the products of vectors over cells; of those from `first_row` with all before them.

        Yields:
            Nodes with (m, m) values, m at least n; valid on and below the diagonal.
        """
        return self._nodes("product_nodes", first_row)

    def square_nodes(self) -> Iterator[Node]:
        """Sum the squares of each vector over cells. Yields nodes with (n,) values."""
        return self._nodes("square_nodes")

    def distance_nodes(self, pairs: NDArray[np.int64]) -> Iterator[Node]:
        """Sum the squared differences of pairs, (p, 2), over cells. Yields nodes of (p,) values."""
        return self._nodes("distance_nodes", ray.put(pairs))

    def _with(self, items: Sequence[_Item], scales: Floats, matrix: Floats | None) -> "RayRows":
        return RayRows(self._shards, items, scales=scales, matrix=matrix)

    def _store(self, vector: Vector) -> _Item:
        (contiguous,) = contiguous_rows([vector])
        spans = self._shards.spans
        return _Added(tuple(ray.put(np.asarray(contiguous[slice(*span)])) for span in spans))

    def _ask(self, shard: int, kind: str, operation: str, *args: object) -> Ref:
        """Start an operation on a shard's columns of these rows."""
        if self._factors is None:
            self._factors = ray.put((self._scales, self._matrix))
        view = _View(
            tuple(item.parts[shard] if isinstance(item, _Added) else item for item in self._items),
            self._factors,
        )
        ref: Ref = getattr(self._shards.actors[shard], kind).remote(view, operation, *args)
        return ref

    def _by_column(self, operation: str, *args: object) -> Vector:
        """Have every shard make its columns of a vector."""
        out = np.empty(self.dim, dtype=np.float32)
        spans = self._shards.spans
        refs = [self._ask(shard, "values", operation, *args) for shard in range(len(spans))]
        for shard, (start, stop) in enumerate(spans):
            out[start:stop] = self._shards.answer(refs[shard], shard)
        return out

    def _nodes(self, operation: str, *args: object) -> Iterator[Node]:
        """Have every shard sum its cells; yield the nodes from left to right."""
        shards = range(len(self._shards.spans))
        refs = [self._ask(shard, "nodes", operation, *args) for shard in shards]
        for shard in shards:
            for level, index, values in self._shards.answer(refs[shard], shard):
                # What comes out of the store is read-only.
                yield Node(level=level, index=index, values=values.copy())


class _Shard:
    """Some columns of all rows, in a process of the cluster. Answers one question at a time."""

    def __init__(self, first_column: int, num_threads: int | None) -> None:
        self._first_column = first_column
        self._num_threads = num_threads
        self._vectors: tuple[Vector, ...] = ()

    def hold(self, vectors: Sequence[Vector]) -> None:
        """Keep vectors as they lie in the store."""
        self._vectors = tuple(vectors)

    def map_files(self, files: Sequence[tuple[Path, int]], span: Span) -> None:
        """Map the columns of a span from files."""
        start, stop = span
        vectors = []
        for path, offset_bytes in files:
            at = offset_bytes + _FLOAT32_BYTES * start
            try:
                vectors.append(np.memmap(path, "<f4", "r", offset=at, shape=(stop - start,)))
            except (OSError, ValueError) as error:
                message = f"path={path} must hold columns {start} to {stop - 1} at byte {at}:"
                message += f" {error}"
                raise AggregationError(message) from error
        self._vectors = tuple(vectors)

    def values(self, view: _View, operation: str, *args: object) -> Vector:
        """Read, or make a vector of, these columns of some rows."""
        made: Vector = getattr(self._rows(view), operation)(*args)
        return made

    def nodes(self, view: _View, operation: str, *args: object) -> list[tuple[int, int, Floats]]:
        """Sum the cells of these columns; as few nodes as there can be."""
        nodes = merged(getattr(self._rows(view), operation)(*args))
        return [(node.level, node.index, node.values) for node in nodes]

    def _vector(self, item: int | Ref) -> Vector:
        vector: Vector = self._vectors[item] if isinstance(item, int) else ray.get(item)
        return vector

    def _rows(self, view: _View) -> DenseRows:
        scales, matrix = ray.get(view.factors)
        return DenseRows(
            [
                self._vectors[item] if isinstance(item, int) else ray.get(item)
                for item in view.items
            ],
            scales=scales,
            matrix=matrix,
            num_threads=self._num_threads,
            first_column=self._first_column,
        )


def _start(dim: int, num_shards: int | None, num_threads: int | None, timeout_s: float) -> _Shards:
    """Start actors for d columns, spread over the machines of the cluster."""
    if not ray.is_initialized():
        message = "ray.init must be called before rows can be sharded"
        raise AggregationError(message)
    if num_shards is None:
        nodes = ray.nodes()  # type: ignore[no-untyped-call]  # ray leaves it untyped
        num_shards = len([node for node in nodes if node["Alive"]])
    if dim < 1 or num_shards < 1 or (num_threads is not None and num_threads < 1):
        message = f"dim={dim}, num_shards={num_shards} and num_threads={num_threads} must be at"
        message += " least 1"
        raise AggregationError(message)
    spans = _cut(dim, num_shards)
    actor = ray.remote(_Shard).options(scheduling_strategy="SPREAD")
    actors = tuple(actor.remote(start, num_threads) for start, _ in spans)
    return _Shards(actors=actors, spans=spans, timeout_s=timeout_s)


def _cut(dim: int, num_shards: int) -> tuple[Span, ...]:
    """Cut d columns into about equal spans that start where cells do; fewer if there are few."""
    num_cells = -(-dim // CELL_COLUMNS)
    count = min(num_shards, num_cells)
    step = 1 << max(0, (num_cells // (count * _STEPS_PER_SHARD)).bit_length() - 1)
    num_steps = -(-num_cells // step)
    edges = [shard * num_steps // count * step * CELL_COLUMNS for shard in range(count)]
    return tuple(pairwise([*edges, dim]))
