import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.rules.mean import mean
from aggregators.rules.median import median
from aggregators.rules.trimmed_mean import trimmed_mean
from tests.aggregators.matrices import (
    ATTACKS,
    Matrix,
    attack,
    honest_rows,
    matrices,
    same_bits,
)
from tests.looped import looped


@given(matrices(), st.data())
def test_agrees_with_the_definition(rows: Matrix, data: st.DataObject) -> None:
    trim = data.draw(st.integers(0, (len(rows) - 1) // 2))
    kept = [sorted(column)[trim : len(rows) - trim] for column in rows.astype(float).T.tolist()]
    vector = trimmed_mean(rows, trim=trim).vector
    for result, values in zip(vector.tolist(), kept, strict=True):
        exact = math.fsum(values) / len(values)
        # One rounding to float32, of a sum that is nearly exact; or to a subnormal.
        assert result == pytest.approx(exact, rel=2.0**-23, abs=2.0**-149)


def test_dropping_nothing_is_the_mean() -> None:
    rows = honest_rows(seed=1, num_rows=7, dim=30)
    expected = mean(rows, weights=np.ones(7)).vector
    assert same_bits(trimmed_mean(rows, trim=0).vector, expected)


def test_dropping_all_but_one_is_the_median() -> None:
    rows = honest_rows(seed=1, num_rows=7, dim=30)
    assert same_bits(trimmed_mean(rows, trim=3).vector, median(rows).vector)


@looped("name", ATTACKS)
def test_attackers_cannot_leave_the_range_of_the_others(name: str) -> None:
    honest = honest_rows(seed=2, num_rows=7, dim=200)
    vector = trimmed_mean(np.vstack([honest, attack(name, honest, 3)]), trim=3).vector
    assert (vector >= honest.min(axis=0)).all()
    assert (vector <= honest.max(axis=0)).all()


def test_one_attacker_more_than_trimmed_can() -> None:
    honest = honest_rows(seed=2, num_rows=7, dim=20)
    rows = np.vstack([honest, attack("plus_1e30", honest, 3)])
    assert (trimmed_mean(rows, trim=2).vector > 1e28).all()


@pytest.mark.parametrize(("num_rows", "trim"), [(5, 3), (4, 2), (1, 1)])
def test_too_few_rows_are_refused(num_rows: int, trim: int) -> None:
    with pytest.raises(TooFewUpdatesError, match=f"trim={trim} .* got n={num_rows}"):
        trimmed_mean(np.ones((num_rows, 2), dtype=np.float32), trim=trim)


def test_negative_trim_is_refused() -> None:
    with pytest.raises(AggregationError, match="trim=-1"):
        trimmed_mean(np.ones((3, 2), dtype=np.float32), trim=-1)
