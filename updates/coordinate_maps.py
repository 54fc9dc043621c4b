"""Linear maps from d coordinates to k numbers that all devices of a round share.

Sums of what such a map gives are what it gives for the sum, so the server, or the share holders,
may add them up and expand once. Every map P here satisfies P P^T = I: expanding is the transpose,
it loses nothing, and neither direction makes a vector longer.

Random maps are drawn from the plan's seed, with the streams of `updates.map_stream`:

    rand-k      The stream "rand-k" is read as d 32-bit integers, one for each coordinate. The k
                coordinates with the largest integers are kept, in increasing order; of equal
                integers those at lower positions.
    projection  Coordinate i is the (i mod k)-th of block b = i div k. The stream "offsets" is
                read as 64-bit integers, one for each block; a_b is the b-th of them modulo k.
                The coordinate goes to row (i mod k + a_b) mod k. Bit i of the stream "signs",
                lowest bit of a byte first, is 1 where its sign is -1. Rows are divided by the
                square root of the number of their coordinates.

So each row of a projection takes one coordinate of every block, and rows differ by at most one
coordinate, the last block being shorter. Over seeds, P^T P is on average (k/d) I where k divides
d: inner products and squared norms of projections are k/d of those of the vectors. Otherwise its
diagonal lies between 1/ceil(d/k) and 1/floor(d/k), the same for all coordinates of whole blocks
and least for the last ones; off the diagonal it is zero.

References: Charikar, Chen, Farach-Colton (2002), "Finding frequent items in data streams", for
    sums with random signs.
"""

import hashlib
from functools import lru_cache
from typing import Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from updates.compression_plan import CompressionPlan, Method
from updates.errors import CompressionError
from updates.index_coding import decode_coordinates
from updates.map_stream import stream_bytes
from updates.topk import Indices, Keys, Vector, largest_keys, top_k

Real = TypeVar("Real", np.float32, np.float64)

_SEED_LABEL: Final = b"fedagg compression map seed v1"
_CHUNK: Final = 1 << 18  # coordinates mapped at a time: their float64 values fit in L2
_CACHED_MAPS: Final = 8  # of a few bits to 8 bytes for each of d coordinates


class LinearMap(Protocol):
    """A linear map P from `dim` coordinates to `num_values` numbers with P P^T = I."""

    @property
    def dim(self) -> int:
        """d, of the vectors that it takes."""

    @property
    def num_values(self) -> int:
        """k, of the numbers that it gives."""

    def compress(self, vector: Vector) -> Vector:
        """Compute P x.

        Args:
            vector: x, (d,), float32. Not modified.

        Returns:
            (k,), float32: accumulated in float64 and rounded once.

        Raises:
            CompressionError: if `vector` is no float32 vector of d coordinates, or if a number
                of the result is not finite.

        Guarantees:
            Linear, and at most as long as `vector`, both up to that one rounding.

        Cost: O(d) time.
        """

    def expand(self, values: NDArray[Real]) -> NDArray[Real]:
        """Compute P^T y.

        Args:
            values: y, (k,), float32 or float64. Not modified.

        Returns:
            (d,), of the type of `values`; products are rounded once to it.

        Raises:
            CompressionError: if `values` does not have k numbers, or those of another type.

        Guarantees:
            Linear, and as long as `values`, up to rounding.

        Cost: O(d) time.
        """


def linear_map(plan: CompressionPlan) -> LinearMap:
    """Give the map of a plan.

    The last few maps are kept: a coordinator and the devices of a simulation ask for the same one
    again and again.

    Raises:
        CompressionError: if the plan's method is no common linear map, or its announced
            coordinates are not `num_values` of `dim`.

    Guarantees:
        Equal plans give the same map, on every machine.

    Cost: O(d) time for a map that is not kept. A restriction holds 8 bytes for each of its k
        coordinates, a projection a bit for each of d coordinates and 8 bytes for each block.
    """
    return _linear_map(plan)


def map_seed_of(task: str, round_number: int, model_sha256: str) -> bytes:
    """Derive the seed of a round's map, 32 bytes, from what every replica knows of the round.

    Args:
        task: the task's name.
        round_number: the round, 0 to 2^64 - 1.
        model_sha256: digest of the base model, in hexadecimal.

    Raises:
        CompressionError: if `round_number` is out of range.

    Guarantees:
        Different arguments give different hashed bytes. No secret is needed and none is made:
        whoever knows the round knows its map.
    """
    if not 0 <= round_number < 2**64:
        message = f"round_number={round_number} must be in 0..2**64 - 1"
        raise CompressionError(message)
    name, model = task.encode(), model_sha256.encode()
    digest = hashlib.sha256(_SEED_LABEL)
    for part in (name, model):
        digest.update(len(part).to_bytes(8, "little") + part)
    digest.update(round_number.to_bytes(8, "little"))
    return digest.digest()


def announced_indices(
    change: Vector, *, num_values: int, random_share: float, seed: bytes
) -> Indices:
    """Choose the coordinates that a server announces from what it has published.

    The largest changes of the model come first; the rest are drawn, so that every coordinate has
    its turn. Nothing but published models and the seed enters, so nothing new is revealed.

    Args:
        change: (d,), float32, finite: the difference of two published models; zeros where there
            is only one. Not modified.
        num_values: k, 1 to d.
        random_share: of the k coordinates, to be drawn, 0 to 1. More are where fewer coordinates
            changed.
        seed: 32 bytes; see `map_seed_of`.

    Returns:
        (k,), increasing positions.

    Raises:
        CompressionError: if an argument is out of range or `change` is not finite.

    Guarantees:
        The same for the same arguments. Coordinates that are not among the largest have equal
        chances, up to 2^-32, of being drawn.

    Cost: O(d) time and memory.
    """
    dim = len(change)
    if not 1 <= num_values <= dim:
        message = f"num_values={num_values} must be in 1..{dim}"
        raise CompressionError(message)
    if not 0 <= random_share <= 1:
        message = f"random_share={random_share} must be in 0..1"
        raise CompressionError(message)
    num_largest = num_values - round(random_share * num_values)
    largest = top_k(change, num_largest) if num_largest else np.zeros(0, np.int64)
    chosen = np.zeros(dim, np.bool_)
    chosen[largest] = True
    rest = np.flatnonzero(~chosen)
    keys = _keys("announced", seed, dim, num_values)[rest]
    chosen[rest[largest_keys(keys, num_values - len(largest))]] = True
    return np.flatnonzero(chosen).astype(np.int64, copy=False)


@lru_cache(maxsize=_CACHED_MAPS)
def _linear_map(plan: CompressionPlan) -> LinearMap:
    dim, num_values, seed = plan.dim, plan.num_values, plan.map_seed
    match plan.method:
        case Method.RAND_K:
            keys = _keys("rand-k", seed, dim, num_values)
            return _Restriction(largest_keys(keys, num_values), dim)
        case Method.ANNOUNCED:
            indices = decode_coordinates(plan.coordinates, dim)
            if len(indices) != num_values:
                message = f"num_values={num_values} must be the number of announced coordinates"
                message += f", {len(indices)}"
                raise CompressionError(message)
            return _Restriction(indices, dim)
        case Method.PROJECTION:
            return _SignedProjection(dim, num_values, seed)
        case Method.DENSE | Method.TOP_K:
            message = f"method={plan.method.value} must be one linear map for all devices"
            raise CompressionError(message)


def _keys(purpose: str, seed: bytes, dim: int, num_values: int) -> Keys:
    drawn = stream_bytes(purpose, seed=seed, dim=dim, num_values=num_values, count=4 * dim)
    return drawn.view("<u4").astype(np.uint32, copy=False)


class _Restriction:
    """Keeps some coordinates."""

    def __init__(self, indices: Indices, dim: int) -> None:
        self._indices = indices
        self._indices.setflags(write=False)  # shared by all users of the cached map
        self.dim = dim
        self.num_values = len(indices)

    def compress(self, vector: Vector) -> Vector:
        _check_vector(vector, self.dim)
        return _finite(vector[self._indices])

    def expand(self, values: NDArray[Real]) -> NDArray[Real]:
        _check_values(values, self.num_values)
        expanded = np.zeros(self.dim, values.dtype)
        expanded[self._indices] = values
        return expanded


class _SignedProjection:
    """Adds coordinates up, with signs, in rows of almost equal sizes."""

    def __init__(self, dim: int, num_values: int, seed: bytes) -> None:
        self.dim = dim
        self.num_values = num_values
        blocks = -(-dim // num_values)
        drawn = stream_bytes("offsets", seed=seed, dim=dim, num_values=num_values, count=8 * blocks)
        self._offsets = (drawn.view("<u8") % np.uint64(num_values)).astype(np.int64)
        self._signs = stream_bytes(
            "signs", seed=seed, dim=dim, num_values=num_values, count=-(-dim // 8)
        )
        last = dim - (blocks - 1) * num_values
        sizes = np.full(num_values, blocks - 1, np.float64)
        sizes[(np.arange(last) + self._offsets[-1]) % num_values] += 1.0
        self._scales = 1.0 / np.sqrt(sizes)
        self._step = num_values * max(1, _CHUNK // num_values)  # whole blocks

    def compress(self, vector: Vector) -> Vector:
        _check_vector(vector, self.dim)
        sums = np.zeros(self.num_values)
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            for start in range(0, self.dim, self._step):
                part = vector[start : start + self._step]
                rows = self._rows(start, len(part))
                # Of numpy's ways to add by index this is by far the fastest.
                sums += np.bincount(rows, part * self._signs_at(start, len(part)), len(sums))
            return _finite((sums * self._scales).astype(np.float32))

    def expand(self, values: NDArray[Real]) -> NDArray[Real]:
        _check_values(values, self.num_values)
        scaled = (values * self._scales).astype(values.dtype)
        expanded = np.empty(self.dim, values.dtype)
        for start in range(0, self.dim, self._step):
            count = min(self._step, self.dim - start)
            part = scaled[self._rows(start, count)]
            np.multiply(part, self._signs_at(start, count), out=expanded[start : start + count])
        return expanded

    def _rows(self, start: int, count: int) -> Indices:
        """Return rows of `count` coordinates from the first one of a block on."""
        block = start // self.num_values
        offsets = self._offsets[block : block + -(-count // self.num_values), None]
        rows = (offsets + np.arange(self.num_values)).ravel()[:count]
        rows[rows >= self.num_values] -= self.num_values
        return rows

    def _signs_at(self, start: int, count: int) -> Vector:
        first, skipped = divmod(start, 8)
        packed = self._signs[first : -(-(start + count) // 8)]
        bits = np.unpackbits(packed, bitorder="little")[skipped : skipped + count]
        signs: Vector = np.float32(1) - np.float32(2) * bits
        return signs


def _check_vector(vector: Vector, dim: int) -> None:
    if vector.shape != (dim,) or vector.dtype != np.float32:
        message = f"vector of {vector.dtype}{vector.shape} must be float32 of shape ({dim},)"
        raise CompressionError(message)


def _check_values(values: NDArray[Real], num_values: int) -> None:
    if values.shape != (num_values,) or values.dtype not in (np.float32, np.float64):
        message = f"values of {values.dtype}{values.shape} must be float32 or float64 of shape"
        message += f" ({num_values},)"
        raise CompressionError(message)


def _finite(values: Vector) -> Vector:
    if not np.isfinite(values).all():
        position = int(np.argmin(np.isfinite(values)))
        message = f"number {position} of the mapped vector, {values[position]}, must be finite"
        raise CompressionError(message)
    return values
