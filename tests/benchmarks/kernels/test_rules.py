import numpy as np
import pytest

from aggregators.rows.dense_rows import as_rows
from aggregators.rows.rows import canonical_order
from benchmarks.kernels.rules import LEAST_ROWS, RULES, make_rows
from tests.looped import looped


def test_rows_follow_from_the_seed() -> None:
    first = make_rows(6, 50, seed=3)
    assert first.shape == (6, 50)
    assert first.dtype == np.float32
    assert first.flags.c_contiguous
    np.testing.assert_array_equal(first, make_rows(6, 50, seed=3))
    assert (first != make_rows(6, 50, seed=4)).any()


def test_rows_spread_differently_around_one_direction() -> None:
    rows = make_rows(20, 20_000, seed=5)
    spreads = np.sort((rows - np.median(rows, axis=0)).std(axis=1))
    np.testing.assert_allclose(spreads, np.linspace(0.5, 1.5, 20), atol=0.1)


def test_rows_ascend_so_that_ties_by_value_are_ties_by_position() -> None:
    rows = make_rows(20, 8, seed=6)
    assert canonical_order(as_rows(rows)) == list(range(20))


@pytest.mark.parametrize("rule", RULES)
@looped("num_rows", [LEAST_ROWS, 4, 5, 7, 10, 33])
def test_every_rule_accepts_its_f(rule: str, num_rows: int) -> None:
    rows = make_rows(num_rows, 7, seed=7)
    answer = RULES[rule].way().bind(rows, RULES[rule].num_byzantine(num_rows))()
    assert answer.shape == (7,)
    assert np.isfinite(answer).all()


def test_a_fifth_is_byzantine_and_bulyan_takes_the_most_it_can() -> None:
    assert RULES["trimmed-mean"].num_byzantine(100) == 20
    assert RULES["krum"].num_byzantine(100) == 20
    assert RULES["bulyan"].num_byzantine(100) == 24
