"""Rows sharded over a local Ray cluster of two workers, against the same rows in this process."""

import logging
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import ray

from aggregators import ray_rows
from aggregators.dense_rows import as_rows
from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.gram import Gram
from aggregators.kernels.gram import CELL_COLUMNS
from aggregators.preaggregations.nearest_neighbour_mixing import nearest_neighbour_mixing
from aggregators.ray_rows import RayRows
from aggregators.rows import Rows
from aggregators.rule import RuleResult
from aggregators.rules.bulyan import bulyan
from aggregators.rules.fltrust import fltrust
from aggregators.rules.geometric_median import geometric_median
from aggregators.rules.krum import krum
from aggregators.rules.mean import mean
from aggregators.rules.mean_around_median import mean_around_median
from aggregators.rules.median import median
from aggregators.rules.multi_krum import multi_krum
from aggregators.rules.trimmed_mean import trimmed_mean
from tests.aggregators.matrices import Matrix, honest_rows, same_bits

pytestmark = [pytest.mark.process, pytest.mark.slow]

NUM_ROWS = 11
LARGE_DIM = 23 * CELL_COLUMNS + 1037  # no whole vector at the end, cells that fill no tree

RULES: dict[str, Callable[[Rows], RuleResult]] = {
    "mean": lambda rows: mean(rows, weights=np.arange(1.0, NUM_ROWS + 1)),
    "krum": lambda rows: krum(rows, num_byzantine=2),
    "multi_krum": lambda rows: multi_krum(rows, num_byzantine=2),
    "median": median,
    "trimmed_mean": lambda rows: trimmed_mean(rows, trim=2),
    "mean_around_median": lambda rows: mean_around_median(rows, num_byzantine=2),
    "geometric_median": geometric_median,
    "bulyan": lambda rows: bulyan(rows, num_byzantine=2),
    "nnm_trimmed_mean": lambda rows: trimmed_mean(
        nearest_neighbour_mixing(rows, num_byzantine=2), trim=2
    ),
    "fltrust": lambda rows: fltrust(rows, root_update=honest_rows(9, 1, rows.dim)[0]),
}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two workers on this machine."""
    with warnings.catch_warnings():
        # Ray warns of settings of its own, and of sockets it leaves to the garbage collector.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", ResourceWarning)
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=200 << 20,
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def sharded() -> RayRows:
    """Rows in two shards of different size."""
    return RayRows.of(rows_of(2 * CELL_COLUMNS + 77), num_shards=2)


def rows_of(dim: int, *, num_rows: int = NUM_ROWS) -> Matrix:
    """Draw rows, two of which are close together and one far away."""
    matrix = honest_rows(dim, num_rows, dim)
    matrix[3] = matrix[1] * np.float32(1 + 1e-5)
    matrix[4] *= np.float32(1e12)
    return matrix


def require_same_gram(first: Gram, second: Gram) -> None:
    assert same_bits(first.inner, second.inner)
    assert same_bits(first.squared_distances, second.squared_distances)


def require_same(first: RuleResult, second: RuleResult) -> None:
    np.testing.assert_array_equal(first.vector.view(np.uint32), second.vector.view(np.uint32))
    assert same_bits(first.weights, second.weights)
    assert (first.scores is None) == (second.scores is None)
    if first.scores is not None and second.scores is not None:
        assert same_bits(first.scores, second.scores)


@pytest.mark.parametrize(
    ("num_shards", "dim"),
    [(1, 5), (2, 5 * CELL_COLUMNS + 16), (3, LARGE_DIM), (5, LARGE_DIM)],
)
def test_every_rule_has_the_bits_of_the_local_one(num_shards: int, dim: int) -> None:
    matrix = rows_of(dim)
    rows = RayRows.of(matrix, num_shards=num_shards, num_threads=2)
    for rule in RULES.values():
        require_same(rule(rows), rule(as_rows(matrix)))
    rows.close()


@pytest.mark.parametrize("num_rows", [1, 40])
def test_float32_products_and_single_rows_have_the_bits_of_the_local_ones(num_rows: int) -> None:
    matrix = honest_rows(1, num_rows, 7 * CELL_COLUMNS + 33)
    rows, local = RayRows.of(matrix, num_shards=2), as_rows(matrix)
    require_same_gram(rows.gram(), local.gram())
    assert same_bits(rows.norms(), local.norms())
    np.testing.assert_array_equal(rows.median(), local.median())
    rows.close()


def test_derived_rows_have_the_bits_of_the_local_ones(sharded: RayRows) -> None:
    matrix = rows_of(sharded.dim)
    local = as_rows(matrix)
    generator = np.random.default_rng(2)
    factors = generator.uniform(0.0, 2.0, NUM_ROWS)
    mixing = generator.dirichlet(np.ones(NUM_ROWS), NUM_ROWS)
    votes = generator.integers(1, 5, NUM_ROWS).astype(np.float64)
    vector = honest_rows(3, 1, matrix.shape[1])[0]
    steps: list[Callable[[Rows], Rows]] = [
        lambda rows: rows.take([5, 0, 5, 2]),
        lambda rows: rows.take(list(reversed(range(NUM_ROWS)))),
        lambda rows: rows.scaled(factors),
        lambda rows: rows.mixed(mixing),
        lambda rows: rows.extended(vector),
        lambda rows: rows.extended(vector).take([11, 3, 1]).scaled(factors[:3]),
        lambda rows: rows.scaled(factors).mixed(mixing).take([0, 1]).scaled(factors[:2]),
        lambda rows: rows.mixed(mixing).mixed(mixing),
    ]
    for step in steps:
        there, here = step(sharded), step(local)
        assert (there.num_rows, there.dim) == (here.num_rows, here.dim)
        weights = votes[: here.num_rows]
        weights = np.append(weights, np.ones(here.num_rows - len(weights)))
        for start, stop in [(0, 1), (CELL_COLUMNS, CELL_COLUMNS + 9), (100, here.dim), (7, 7)]:
            np.testing.assert_array_equal(there.read(start, stop), here.read(start, stop))
        require_same_gram(there.gram(), here.gram())
        assert same_bits(there.norms(), here.norms())
        pairs = [
            (there.combine(weights, 3.0), here.combine(weights, 3.0)),
            (there.median(), here.median()),
            (there.weighted_median(weights, 0), here.weighted_median(weights, 0)),
            (there.mean_around_median(1), here.mean_around_median(1)),
        ]
        for first, second in pairs:
            np.testing.assert_array_equal(first, second)


def test_files_are_mapped_by_the_shards(tmp_path: Path) -> None:
    matrix = rows_of(CELL_COLUMNS + 9)
    files = []
    for index, row in enumerate(matrix):
        path, offset = tmp_path / f"{index}.bin", 8 * index
        path.write_bytes(b"\xff" * offset + row.tobytes())
        files.append((path, offset))
    rows = RayRows.from_files(files, dim=matrix.shape[1], num_shards=2)
    require_same(krum(rows, num_byzantine=2), krum(matrix, num_byzantine=2))
    np.testing.assert_array_equal(rows.median(), as_rows(matrix).median())
    rows.close()
    with pytest.raises(AggregationError, match=r"0\.bin must hold columns 0 to 99999 at byte 0"):
        RayRows.from_files(files[:1], dim=100_000, num_shards=1)
    with pytest.raises(AggregationError, match=r"path=.*missing"):
        RayRows.from_files([(tmp_path / "missing", 0)], dim=3)
    with pytest.raises(AggregationError, match="offset_bytes=2 of"):
        RayRows.from_files([(files[0][0], 2)], dim=3)
    with pytest.raises(AggregationError, match="at least one file"):
        RayRows.from_files([], dim=3)


def test_strided_rows_and_memory_maps_go_to_one_shard_a_machine(tmp_path: Path) -> None:
    matrix = rows_of(2500)
    path = tmp_path / "row.bin"
    path.write_bytes(matrix[0].tobytes())
    mapped = np.memmap(path, dtype=np.float32, mode="r")
    rows = RayRows.of([mapped, *np.asfortranarray(matrix)[1:]])
    assert len(rows._shards.actors) == 1
    require_same(median(rows), median(matrix))
    rows.close()


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("dim", [1, CELL_COLUMNS, 3 * CELL_COLUMNS + 1, 1000 * CELL_COLUMNS - 1])
def test_shards_hold_whole_cells_and_none_is_empty(num_shards: int, dim: int) -> None:
    spans = ray_rows._cut(dim, num_shards)
    assert len(spans) == min(num_shards, -(-dim // CELL_COLUMNS))
    assert (spans[0][0], spans[-1][1]) == (0, dim)
    assert all(left[1] == right[0] for left, right in pairwise(spans))
    assert all(start % CELL_COLUMNS == 0 and start < stop for start, stop in spans)
    sizes = [stop - start for start, stop in spans]
    assert max(sizes) <= 1.2 * dim / len(spans) + CELL_COLUMNS


def test_errors_of_the_shards_are_those_of_the_rules(sharded: RayRows) -> None:
    with pytest.raises(TooFewUpdatesError, match="got n=11"):
        krum(sharded, num_byzantine=5)
    with pytest.raises(AggregationError, match=r"trim=6 must satisfy 0 <= 2 \* trim < n, got n=11"):
        sharded.trimmed_mean(6)
    with pytest.raises(AggregationError, match=r"must be float32 of shape \(d,\)=\("):
        sharded.extended(np.zeros(3, dtype=np.float32))


def test_rows_that_are_not_finite_are_refused() -> None:
    matrix = rows_of(50)
    matrix[2, 40] = np.nan
    rows = RayRows.of(matrix, num_shards=1)
    for rule in (median, mean, lambda rows: krum(rows, num_byzantine=2)):
        with pytest.raises(AggregationError, match="rows must be finite") as caught:
            rule(rows)
        assert not isinstance(caught.value, ray.exceptions.RayTaskError)
    rows.close()


def test_bad_arguments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AggregationError, match="num_shards=0"):
        RayRows.of(rows_of(10), num_shards=0)
    with pytest.raises(AggregationError, match="num_threads=0"):
        RayRows.of(rows_of(10), num_threads=0)
    with pytest.raises(AggregationError, match="must be float32"):
        RayRows.of(np.zeros((2, 3)))  # type: ignore[arg-type]  # the refusal is under test
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(AggregationError, match=r"ray\.init must be called"):
        RayRows.of(rows_of(10))


def test_a_shard_that_died_is_named() -> None:
    rows = RayRows.of(rows_of(CELL_COLUMNS + 3), num_shards=2)
    ray.kill(rows._shards.actors[1])
    name = f"shard 1 of 2, columns {CELL_COLUMNS} to {CELL_COLUMNS + 2}, has died: "
    with pytest.raises(AggregationError, match=name):
        rows.median()
    with pytest.raises(AggregationError, match=name):
        rows.gram()
    rows.close()
    with pytest.raises(AggregationError, match=r"shard 0 of 2, columns 0 to \d+, has died: "):
        rows.norms()


def test_a_shard_that_does_not_answer_in_time_is_named(sharded: RayRows) -> None:
    shards = sharded._shards
    hasty = type(shards)(actors=shards.actors, spans=shards.spans, timeout_s=0.0)
    with pytest.raises(AggregationError, match=r"did not answer within timeout_s=0\.0"):
        RayRows(hasty, range(NUM_ROWS)).trimmed_mean(1)
