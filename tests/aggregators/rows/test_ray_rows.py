"""Rows sharded over a local Ray cluster of two workers, against the same rows in this process."""

import gc
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import ray

from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.kernels.cell_products import CELL_COLUMNS
from aggregators.preaggregations.nearest_neighbour_mixing import nearest_neighbour_mixing
from aggregators.rows import ray_rows
from aggregators.rows.dense_rows import as_rows
from aggregators.rows.gram import Gram
from aggregators.rows.ray_rows import RayRows, RayWorkers
from aggregators.rows.rows import Rows
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
from tests.looped import looped

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(400)]

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
def workers() -> Iterator[RayWorkers]:
    """Two workers that several rows are spread over."""
    started = RayWorkers(num_workers=2, num_threads=2)
    yield started
    started.close()
    started.close()


@pytest.fixture(scope="module")
def sharded(workers: RayWorkers) -> RayRows:
    """Rows in two shards of different size."""
    return workers.rows(rows_of(2 * CELL_COLUMNS + 77))


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
    workers = RayWorkers(num_workers=num_shards, num_threads=2)
    rows = workers.rows(matrix)
    for rule in RULES.values():
        require_same(rule(rows), rule(as_rows(matrix)))
    workers.close()


@pytest.mark.parametrize("num_rows", [1, 40])
def test_float32_products_and_single_rows_have_the_bits_of_the_local_ones(
    workers: RayWorkers, num_rows: int
) -> None:
    matrix = honest_rows(1, num_rows, 7 * CELL_COLUMNS + 33)
    rows, local = workers.rows(matrix), as_rows(matrix)
    require_same_gram(rows.gram(), local.gram())
    assert same_bits(rows.norms(), local.norms())
    np.testing.assert_array_equal(rows.median(), local.median())


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


def test_strided_rows_and_memory_maps_go_to_one_worker_a_machine(tmp_path: Path) -> None:
    matrix = rows_of(2500)
    path = tmp_path / "row.bin"
    path.write_bytes(matrix[0].tobytes())
    mapped = np.memmap(path, dtype=np.float32, mode="r")
    workers = RayWorkers()
    rows = workers.rows([mapped, *np.asfortranarray(matrix)[1:]])
    assert len(rows._shards.actors) == 1
    require_same(median(rows), median(matrix))
    workers.close()


def test_workers_hold_rows_as_long_as_somebody_here_does(workers: RayWorkers) -> None:
    def held() -> int:
        return len(ray.get(workers._actors[0].__ray_call__.remote(lambda worker: worker._held)))

    before = held()
    rows: Rows = workers.rows(rows_of(50))
    derived = rows.take([1, 2]).scaled(np.ones(2))
    del rows
    assert held() == before + 1
    derived.norms()
    del derived
    gc.collect()
    assert held() == before


@looped("num_shards", [1, 2, 3, 7, 50])
@looped("dim", [1, CELL_COLUMNS, 3 * CELL_COLUMNS + 1, 1000 * CELL_COLUMNS - 1])
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


def test_rows_that_are_not_finite_are_refused(workers: RayWorkers) -> None:
    matrix = rows_of(50)
    matrix[2, 40] = np.nan
    rows = workers.rows(matrix)
    for rule in (median, mean, lambda rows: krum(rows, num_byzantine=2)):
        with pytest.raises(AggregationError, match="rows must be finite") as caught:
            rule(rows)
        assert not isinstance(caught.value, ray.exceptions.RayTaskError)


def test_bad_arguments_are_refused(workers: RayWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AggregationError, match="num_workers=0"):
        RayWorkers(num_workers=0)
    with pytest.raises(AggregationError, match="num_threads=0"):
        RayWorkers(num_threads=0)
    with pytest.raises(AggregationError, match=r"1 Ray workers did not start within 0 s"):
        RayWorkers(num_workers=1, timeout_s=0.0)
    with pytest.raises(AggregationError, match="must be float32"):
        workers.rows(np.zeros((2, 3)))  # type: ignore[arg-type]  # the refusal is under test
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(AggregationError, match=r"ray\.init must be called"):
        RayWorkers()


def test_a_worker_that_died_is_named_and_started_again() -> None:
    workers = RayWorkers(num_workers=2)
    rows = workers.rows(rows_of(CELL_COLUMNS + 3))
    name = f"shard 1 of 2, columns {CELL_COLUMNS} to {CELL_COLUMNS + 2},"
    ray.kill(workers._actors[1], no_restart=False)
    with pytest.raises(AggregationError, match=f"{name} has died|a worker has lost its columns"):
        rows.median()
    ray.get(workers._actors[1].ready.options(max_task_retries=-1).remote())
    with pytest.raises(AggregationError, match="a worker has lost its columns"):
        rows.median()
    matrix = rows_of(CELL_COLUMNS + 4)
    require_same(median(workers.rows(matrix)), median(matrix))
    workers.close()
    with pytest.raises(AggregationError, match=r"shard 0 of 2, columns 0 to \d+, has died: "):
        rows.norms()


def test_a_shard_that_does_not_answer_in_time_is_named(sharded: RayRows) -> None:
    hasty = replace(sharded._shards, timeout_s=0.0)
    with pytest.raises(AggregationError, match=r"did not answer within timeout_s=0\.0"):
        RayRows(hasty, range(NUM_ROWS)).trimmed_mean(1)
