from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.preaggregations.clipping import (
    adaptive_clipping_factors,
    median_clipping_factors,
)
from aggregators.rows.dense_rows import as_rows
from aggregators.rows.rows import Rows
from tests.aggregators.matrices import ATTACKS, Matrix, attack, honest_rows, matrices, same_bits
from tests.looped import looped
from tests.peers import byzfl

# Every entry is rounded once to float32.
ROUNDING = 2.0**-23


def median_clipping(rows: Matrix, *, factor: float) -> Rows:
    matrix = as_rows(rows)
    return matrix.scaled(median_clipping_factors(matrix.norms(), factor=factor))


def adaptive_clipping(rows: Matrix, *, num_byzantine: int) -> Rows:
    matrix = as_rows(rows)
    return matrix.scaled(adaptive_clipping_factors(matrix.norms(), num_byzantine=num_byzantine))


CLIPPINGS: dict[str, Callable[[Matrix], Rows]] = {
    "median": lambda rows: median_clipping(rows, factor=0.8),
    "adaptive": lambda rows: adaptive_clipping(rows, num_byzantine=(len(rows) - 1) // 2),
}


def values(rows: Rows) -> Matrix:
    return rows.read(0, rows.dim)


def lengths(rows: Matrix) -> list[float]:
    return [float(np.linalg.norm(row.astype(np.float64))) for row in rows]


def uneven_rows(seed: int, num_rows: int) -> Matrix:
    factors = np.random.default_rng(seed).uniform(0.1, 5.0, (num_rows, 1))
    return (honest_rows(seed, num_rows, dim=6) * factors).astype(np.float32)


@pytest.mark.peers
@given(st.integers(0, 10_000), st.integers(1, 40), st.data())
def test_adaptive_agrees_with_byzfl(seed: int, num_rows: int, data: st.DataObject) -> None:
    num_byzantine = data.draw(st.integers(0, (num_rows - 1) // 2))
    rows = uneven_rows(seed, num_rows)
    theirs = byzfl.ARC(num_byzantine)(rows.astype(np.float64))
    ours = values(adaptive_clipping(rows, num_byzantine=num_byzantine))
    np.testing.assert_allclose(ours, theirs, rtol=ROUNDING)


def test_adaptive_counts_exactly_where_byzfl_rounds_down() -> None:
    # 2 * 33 * (242 - 33) / 242 is 57; in floating point it is less.
    assert int((2 * 33 / 242) * (242 - 33)) == 56
    factors = adaptive_clipping_factors(np.arange(1.0, 243.0), num_byzantine=33)
    assert (factors < 1.0).sum() == 57


@given(st.integers(0, 10_000), st.integers(1, 12), st.floats(0.1, 3.0))
def test_median_agrees_with_the_definition(seed: int, num_rows: int, factor: float) -> None:
    rows = uneven_rows(seed, num_rows)
    norms = np.array(lengths(rows))
    shrunk = np.minimum(1.0, factor * np.median(norms) / norms)
    np.testing.assert_allclose(
        values(median_clipping(rows, factor=factor)), rows * shrunk[:, np.newaxis], rtol=1e-6
    )


@pytest.mark.parametrize("name", CLIPPINGS)
@given(seed=st.integers(0, 10_000), num_rows=st.integers(2, 12))
def test_long_rows_get_the_length_of_the_bound_and_others_stay(
    name: str, seed: int, num_rows: int
) -> None:
    rows = uneven_rows(seed, num_rows)
    norms = np.array(lengths(rows))
    k = 2 * ((num_rows - 1) // 2) * (num_rows - (num_rows - 1) // 2) // num_rows
    bound = {
        "median": 0.8 * float(np.median(norms)),
        "adaptive": sorted(norms)[num_rows - k - 1],
    }[name]
    clipped = values(CLIPPINGS[name](rows))
    is_long = norms > bound * (1 + 1e-9)
    assert same_bits(clipped[~is_long], rows[~is_long])
    np.testing.assert_allclose(lengths(clipped[is_long]), bound, rtol=ROUNDING)
    directions = clipped[is_long].astype(np.float64) / bound
    expected = rows[is_long] / norms[is_long, np.newaxis]
    np.testing.assert_allclose(directions, expected, rtol=1e-6)


@pytest.mark.parametrize("name", CLIPPINGS)
@given(rows=matrices(), random=st.randoms(use_true_random=False))
def test_permuting_rows_permutes_the_result_bit_for_bit(
    name: str, rows: Matrix, random: Random
) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    first, second = values(CLIPPINGS[name](rows)), values(CLIPPINGS[name](rows[order]))
    assert same_bits(first[order], second)


@pytest.mark.parametrize("name", ["median", "adaptive"])
@pytest.mark.parametrize("scale", [2.0**-90, 2.0**90])
def test_scaling_rows_scales_the_result(name: str, scale: float) -> None:
    rows = uneven_rows(seed=3, num_rows=9)
    expected = values(CLIPPINGS[name](rows)) * np.float32(scale)
    scaled = values(CLIPPINGS[name](rows * np.float32(scale)))
    np.testing.assert_allclose(scaled, expected, rtol=ROUNDING)


@looped("name", ATTACKS)
def test_a_minority_cannot_move_the_median_bound(name: str) -> None:
    honest = honest_rows(seed=1, num_rows=6, dim=50)
    rows = np.vstack([honest, attack(name, honest, 5)])
    clipped = values(median_clipping(rows, factor=1.5))
    assert max(lengths(clipped)) <= 1.5 * max(lengths(honest)) * (1 + ROUNDING)


@looped("name", ATTACKS)
@looped("num_byzantine", [1, 3, 5])
def test_adaptive_leaves_no_row_longer_than_the_longest_honest_one(
    name: str, num_byzantine: int
) -> None:
    honest = honest_rows(seed=1, num_rows=6, dim=50)
    rows = np.vstack([honest, attack(name, honest, num_byzantine)])
    clipped = values(adaptive_clipping(rows, num_byzantine=num_byzantine))
    assert max(lengths(clipped)) <= max(lengths(honest)) * (1 + ROUNDING)


def test_adaptive_with_f_zero_changes_nothing() -> None:
    rows = uneven_rows(seed=2, num_rows=8)
    assert same_bits(values(adaptive_clipping(rows, num_byzantine=0)), rows)


def test_rows_of_length_zero_stay() -> None:
    norms = np.array([0.0, 0.0, 3.0])
    assert median_clipping_factors(norms).tolist() == [1.0, 1.0, 0.0]
    assert adaptive_clipping_factors(norms, num_byzantine=1).tolist() == [1.0, 1.0, 0.0]
    zeros = np.zeros((3, 2), dtype=np.float32)
    for clip in CLIPPINGS.values():
        assert values(clip(zeros)).tolist() == zeros.tolist()


@pytest.mark.parametrize("value", [0.0, -1.0, np.inf, np.nan])
def test_bounds_are_checked(value: float) -> None:
    with pytest.raises(AggregationError, match=r"factor=.* of median-clipping must be finite"):
        median_clipping_factors(np.ones(3), factor=value)


def test_adaptive_refuses_too_few_rows() -> None:
    message = "num_byzantine=2 of arc .* got n=4"
    with pytest.raises(TooFewUpdatesError, match=message):
        adaptive_clipping_factors(np.ones(4), num_byzantine=2)
    with pytest.raises(AggregationError, match="num_byzantine=-1"):
        adaptive_clipping_factors(np.ones(4), num_byzantine=-1)
