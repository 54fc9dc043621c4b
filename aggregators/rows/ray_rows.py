"""Rows sharded by coordinate over a Ray cluster; needs the `ray` extra.

Each shard is some columns of all rows, held by an actor that reads them with the kernels of
`DenseRows`. Sums over all columns come back as nodes of one tree and are added up here, vectors as
the shards' columns one after the other; so every result has the bits of the local one.
"""

import secrets
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from aggregators.errors import AggregationError
from aggregators.kernels.cell_products import CELL_COLUMNS
from aggregators.rows.cell_tree import Node, merged
from aggregators.rows.dense_rows import DenseRows, contiguous_rows
from aggregators.rows.rows import Floats, Vector
from aggregators.rows.stored_rows import StoredRows

DEFAULT_TIMEOUT_S: Final = 600.0

_STEPS_PER_SHARD: Final = 16  # shards start at multiples of a power of two: fewer nodes to send

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


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class _Shards:
    """Actors, the columns of one set of rows that each holds, and how long to wait for answers.

    Attributes:
        key: names the rows to the actors.
    """

    actors: tuple[Any, ...]
    spans: tuple[Span, ...]
    key: str
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


class RayWorkers:
    """Actors, spread over the machines of a Ray cluster, that hold shards of rows.

    Start them after `ray.init`. They hold the vectors of rows for as long as anybody here holds
    those rows or what is derived from them. An actor whose process dies is started again, without
    what it held.
    """

    def __init__(
        self,
        *,
        num_workers: int | None = None,
        num_threads: int | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        """Start the actors.

        Args:
            num_workers: None: one a machine of the cluster. Never changes a result.
            num_threads: threads of each; None: one a core of its machine. Never changes a result.
            timeout_s: seconds to wait for any one answer.

        Raises:
            AggregationError: if an argument is out of range, Ray is not initialised, or an actor
                does not start in time.
        """
        if not ray.is_initialized():
            message = "ray.init must be called before rows can be sharded"
            raise AggregationError(message)
        if num_workers is None:
            nodes = ray.nodes()  # type: ignore[no-untyped-call]  # ray leaves it untyped
            num_workers = len([node for node in nodes if node["Alive"]])
        if num_workers < 1 or (num_threads is not None and num_threads < 1):
            message = f"num_workers={num_workers} and num_threads={num_threads} must be at least 1"
            raise AggregationError(message)
        actor = ray.remote(_Worker).options(scheduling_strategy="SPREAD", max_restarts=-1)
        self._actors: tuple[Any, ...] = tuple(actor.remote(num_threads) for _ in range(num_workers))
        self._timeout_s = timeout_s
        try:
            ray.get([worker.ready.remote() for worker in self._actors], timeout=timeout_s)
        except RayError as error:
            self.close()
            message = f"{num_workers} Ray workers did not start within {timeout_s:g} s: {error}"
            raise AggregationError(message) from error

    def rows(self, vectors: Sequence[Vector] | Vector) -> "RayRows":
        """Copy vectors of this process to the actors.

        Args:
            vectors: (n, d), float32. Cut into as many shards as there are actors, fewer if there
                are not as many cells of columns.

        Raises:
            AggregationError: if `vectors` are not float32 vectors of one length, or an actor has
                died or does not answer.
        """
        rows = contiguous_rows(vectors)
        spans = _cut(len(rows[0]), len(self._actors))
        actors = self._actors[: len(spans)]
        shards = _Shards(
            actors=actors, spans=spans, key=secrets.token_hex(8), timeout_s=self._timeout_s
        )
        weakref.finalize(shards, _release, actors, shards.key)
        loads = []
        for actor, (start, stop) in zip(actors, spans, strict=True):
            # As plain arrays, slices go to the store without another copy; memory maps do not.
            part = [np.asarray(row[start:stop]) for row in rows]
            loads.append(actor.hold.remote(shards.key, start, ray.put(part)))
        for shard, load in enumerate(loads):
            shards.answer(load, shard)
        return RayRows(shards, range(len(rows)))

    def close(self) -> None:
        """Stop the actors; their rows are of no use after. May be called twice."""
        if ray.is_initialized():
            for actor in self._actors:
                ray.kill(actor)


class RayRows(StoredRows[_Item]):
    """n vectors of equal length whose columns are spread over a Ray cluster. See `Rows`.

    Make them with `RayWorkers`. Of what is derived from them (`take`, `scaled`, ...) only the few
    numbers that describe it are sent.

    Guarantees:
        Every result has the bits of `DenseRows`, whatever the number of shards.
        A shard that died or does not answer raises `AggregationError`.
    """

    def __init__(
        self,
        shards: _Shards,
        items: Sequence[_Item],
        *,
        scales: Floats | None = None,
        matrix: Floats | None = None,
    ) -> None:
        """Describe rows that shards hold."""
        super().__init__(items, scales=scales, matrix=matrix)
        self._shards = shards
        self._factors: Ref | None = None

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
        actor, key = self._shards.actors[shard], self._shards.key
        ref: Ref = getattr(actor, kind).remote(key, view, operation, *args)
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


class _Worker:
    """Holds some columns of rows in a process of the cluster. Answers one question at a time."""

    def __init__(self, num_threads: int | None) -> None:
        self._num_threads = num_threads
        self._held: dict[str, tuple[int, tuple[Vector, ...]]] = {}

    def ready(self) -> None:
        """Answer once the process has started."""

    def hold(self, key: str, first_column: int, vectors: Sequence[Vector]) -> None:
        """Keep vectors as they lie in the store."""
        self._held[key] = first_column, tuple(vectors)

    def release(self, key: str) -> None:
        """Let go of what is held under a key."""
        self._held.pop(key, None)

    def values(self, key: str, view: _View, operation: str, *args: object) -> Vector:
        """Read, or make a vector of, these columns of some rows."""
        made: Vector = getattr(self._rows(key, view), operation)(*args)
        return made

    def nodes(
        self, key: str, view: _View, operation: str, *args: object
    ) -> list[tuple[int, int, Floats]]:
        """Sum the cells of these columns; as few nodes as there can be."""
        nodes = merged(getattr(self._rows(key, view), operation)(*args))
        return [(node.level, node.index, node.values) for node in nodes]

    def _rows(self, key: str, view: _View) -> DenseRows:
        if key not in self._held:
            message = "a worker has lost its columns: its process was started again"
            raise AggregationError(message)
        first_column, vectors = self._held[key]
        scales, matrix = ray.get(view.factors)
        return DenseRows(
            [vectors[item] if isinstance(item, int) else ray.get(item) for item in view.items],
            scales=scales,
            matrix=matrix,
            num_threads=self._num_threads,
            first_column=first_column,
        )


def _release(actors: Sequence[Any], key: str) -> None:
    """Tell actors that nobody holds some rows any more; who has died holds nothing anyway."""
    if ray.is_initialized():
        with suppress(RayError):
            for actor in actors:
                actor.release.remote(key)


def _cut(dim: int, num_shards: int) -> tuple[Span, ...]:
    """Cut d columns into about equal spans that start where cells do; fewer if there are few."""
    num_cells = -(-dim // CELL_COLUMNS)
    count = min(num_shards, num_cells)
    step = 1 << max(0, (num_cells // (count * _STEPS_PER_SHARD)).bit_length() - 1)
    num_steps = -(-num_cells // step)
    edges = [shard * num_steps // count * step * CELL_COLUMNS for shard in range(count)]
    return tuple(pairwise([*edges, dim]))
