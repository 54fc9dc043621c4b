"""Results have the same bits whoever does what part of the work, in whatever order."""

import itertools
from collections.abc import Callable
from functools import cache
from typing import Final

import numpy as np
import pytest

from aggregators.engines.engine import LocalEngine
from aggregators.kernels.cell_products import CELL_COLUMNS
from aggregators.registry import traits_of
from aggregators.rows.cell_tree import fold, merged
from aggregators.rows.dense_rows import DenseRows, as_rows
from aggregators.rows.rows import Rows
from tests.aggregators.contract import (
    EVERYTHING,
    Case,
    apply,
    case_of,
    same_result,
)
from tests.aggregators.matrices import (
    Floats,
    Matrix,
    cancelling_rows,
    cuts,
    exact_combination,
    honest_rows,
    mixed_magnitudes,
    near_identical_rows,
    same_bits,
)

THREADS: Final = (1, 2, 3, 7)
# More than 2**18 values, or one thread does it all; widths that fill neither a cell nor a vector.
FEW: Final = (12, 14 * CELL_COLUMNS + 1000 + 5)
MANY: Final = (37, 4 * CELL_COLUMNS + 7)
SHAPES = pytest.mark.parametrize("shape", [FEW, MANY])

# Where the columns are cut, in cells: one shard, even ones, uneven ones, one cell each.
CUTS = pytest.mark.parametrize(
    "pieces", [[], [1], [3], [2, 4], [1, 2, 3], [1, 3, 4], [1, 2, 3, 4], list(range(15))]
)


@cache
def large_case(shape: tuple[int, int]) -> Case:
    rows = honest_rows(1, *shape)
    rows[1] *= 1000
    rows[4] = rows[3]
    # The models read few columns: what they answer costs more than what the rules do.
    readout = np.random.default_rng(2).standard_normal((6, 4, 1)) * np.eye(1, shape[1])
    return case_of(rows, readout=readout)


@pytest.mark.parametrize("rule", EVERYTHING)
@SHAPES
def test_any_order_and_number_of_threads_give_every_rule_the_same_bits(
    rule: str, shape: tuple[int, int]
) -> None:
    case = large_case(shape)
    knows = traits_of(rule).needs
    engines = [LocalEngine(num_threads=num_threads) for num_threads in THREADS]
    first = apply(rule, case, num_byzantine=2, knows=knows, engine=engines[0])
    for engine in engines[1:]:
        again = apply(rule, case, num_byzantine=2, knows=knows, engine=engine)
        assert same_result(first, again)
    order = np.random.default_rng(3).permutation(shape[0]).tolist()
    shuffled = case.permuted(order)
    assert same_bits(apply(rule, shuffled, num_byzantine=2, knows=knows).vector, first.vector)


def operations(num_rows: int) -> dict[str, Callable[[Rows], Matrix]]:
    votes = np.random.default_rng(4).integers(1, 1000, num_rows).astype(np.float64)
    factors = np.random.default_rng(5).random(num_rows)
    mixing = np.random.default_rng(6).dirichlet(np.ones(num_rows), 5)
    return {
        "combine": lambda rows: rows.combine(votes, votes.sum()),
        "median": lambda rows: rows.median(),
        "trimmed mean": lambda rows: rows.trimmed_mean(num_rows // 3),
        "mean around median": lambda rows: rows.mean_around_median(num_rows - 3),
        "weighted median": lambda rows: rows.weighted_median(votes, 2),
        "median of scaled": lambda rows: rows.scaled(factors).median(),
        "sum of scaled": lambda rows: rows.scaled(factors).combine(votes, votes.sum()),
        "median of mixed": lambda rows: rows.mixed(mixing).median(),
        "sum of mixed": lambda rows: rows.mixed(mixing).combine(np.ones(5), 5.0),
        "mixed": lambda rows: rows.mixed(mixing).read(0, rows.dim),
        "scaled": lambda rows: rows.scaled(factors).read(0, rows.dim),
    }


def columns(rows: Matrix, start: int, stop: int, num_threads: int | None = None) -> DenseRows:
    """Hold some columns as a shard does."""
    parts = tuple(np.ascontiguousarray(rows[:, start:stop]))
    return DenseRows(parts, num_threads=num_threads, first_column=start)


def values(shape: tuple[int, int]) -> Matrix:
    rows = near_identical_rows(7, *shape)
    # Columns that cancel and columns that span the range of float32.
    rows[:, ::3] = cancelling_rows(8, *shape)[:, ::3]
    rows[:, 1::7] = mixed_magnitudes(9, *shape)[:, 1::7] * np.float32(1e-3)
    return rows


@pytest.mark.parametrize("num_threads", THREADS)
@SHAPES
def test_threads_do_not_change_a_bit_of_any_operation(
    shape: tuple[int, int], num_threads: int
) -> None:
    rows = values(shape)
    alone, several = as_rows(rows, num_threads=1), as_rows(rows, num_threads=num_threads)
    for operation in operations(shape[0]).values():
        assert same_bits(operation(several), operation(alone))
    assert same_bits(several.norms(), alone.norms())
    assert same_bits(several.gram().inner, alone.gram().inner)
    assert same_bits(several.gram().squared_distances, alone.gram().squared_distances)


@CUTS
def test_columns_side_by_side_are_the_whole(pieces: list[int]) -> None:
    rows = values(MANY)
    whole = as_rows(rows)
    spans = cuts(rows.shape[1], CELL_COLUMNS, pieces)
    for operation in operations(len(rows)).values():
        parts = [operation(columns(rows, start, stop)) for start, stop in spans]
        assert same_bits(np.concatenate(parts, axis=-1), operation(whole))


@CUTS
@pytest.mark.parametrize("num_threads", [1, 3])
@SHAPES
def test_sums_over_shards_are_the_sums_of_the_whole(
    shape: tuple[int, int], num_threads: int, pieces: list[int]
) -> None:
    rows = values(shape)
    whole = columns(rows, 0, shape[1], 1)
    shards = [
        columns(rows, start, stop, num_threads)
        for start, stop in cuts(shape[1], CELL_COLUMNS, pieces)
    ]
    pairs = np.array(list(itertools.combinations(range(shape[0]), 2)))[::5, ::-1].copy()

    def total(shards: list[DenseRows]) -> list[Floats]:
        # Each shard adds what it can before it sends anything.
        return [
            fold(n for shard in shards for n in merged(shard.product_nodes())),
            fold(n for shard in shards for n in merged(shard.square_nodes())),
            fold(n for shard in shards for n in merged(shard.distance_nodes(pairs))),
        ]

    for ours, theirs in zip(total(shards), total([whole]), strict=True):
        assert same_bits(ours, theirs)


def float32_mean(rows: Matrix) -> Matrix:
    """Average as a plain loop does."""
    total = np.zeros(rows.shape[1], dtype=np.float32)
    for row in rows:
        total += row
    return total / np.float32(len(rows))


def relative_error(found: Matrix, exact: Matrix) -> float:
    truth = exact.astype(np.float64)
    return float((np.abs(found.astype(np.float64) - truth) / np.abs(truth)).max())


@pytest.mark.slow
def test_in_each_of_a_thousand_rounds_ours_holds_and_in_most_float32_fails() -> None:
    num_failed = 0
    for seed in range(1000):
        rows = cancelling_rows(seed, 25, 4)
        exact = exact_combination(rows, np.ones(25), 25.0)
        assert relative_error(apply("mean", rows).vector, exact) < 1e-6
        num_failed += relative_error(float32_mean(rows), exact) > 1e-2
    assert num_failed > 900


@pytest.mark.slow
def test_a_model_keeps_its_digits_over_a_thousand_rounds() -> None:
    model, plain = np.zeros(4), np.zeros(4)
    exact = np.zeros(4)
    for seed in range(1000):
        rows = cancelling_rows(seed, 25, 4)
        model += apply("mean", rows).vector
        plain += float32_mean(rows)
        exact += exact_combination(rows, np.ones(25), 25.0)
    np.testing.assert_allclose(model, exact, rtol=1e-6)
    assert (np.abs(plain - exact) > 1e-2 * np.abs(exact)).any()


@pytest.mark.slow
def test_a_thousand_workers_of_all_magnitudes_average_exactly_where_float32_fails() -> None:
    rows = cancelling_rows(11, 1001, 100)
    exact = exact_combination(rows, np.ones(1001), 1001.0)
    found = apply("mean", rows).vector
    assert relative_error(found, exact) < 1e-6
    order = np.random.default_rng(12).permutation(1001)
    assert same_bits(apply("mean", rows[order]).vector, found)
    assert relative_error(float32_mean(rows), exact) > 1.0
