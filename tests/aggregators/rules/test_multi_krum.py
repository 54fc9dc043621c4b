import numpy as np
import pytest

from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.rules.krum import krum
from aggregators.rules.mean import mean
from aggregators.rules.multi_krum import multi_krum
from tests.aggregators.matrices import (
    ATTACKS,
    attack,
    brute_force_krum_scores,
    honest_rows,
    same_bits,
)


@pytest.mark.parametrize("num_to_select", [1, 3, 8, None])
def test_agrees_with_brute_force(num_to_select: int | None) -> None:
    rows = honest_rows(seed=1, num_rows=11, dim=40)
    result = multi_krum(rows, num_byzantine=3, num_to_select=num_to_select)
    best = np.argsort(brute_force_krum_scores(rows, 3))[: num_to_select or 8]
    assert set(np.flatnonzero(result.selected)) == set(best)
    expected = rows[best].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(result.vector, expected, rtol=1e-14)
    np.testing.assert_allclose(result.weights @ rows, expected, rtol=1e-6)
    assert result.weights.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "zeros"])
def test_three_of_ten_attackers_are_excluded(name: str) -> None:
    honest = honest_rows(seed=2, num_rows=7, dim=100)
    rows = np.vstack([attack(name, honest, 3), honest])
    result = multi_krum(rows, num_byzantine=3)
    assert result.selected.tolist() == [False] * 3 + [True] * 7
    assert same_bits(result.vector, mean(honest, weights=np.ones(7)).vector)


def test_selecting_one_is_krum() -> None:
    rows = honest_rows(seed=3, num_rows=9, dim=10)
    one = multi_krum(rows, num_byzantine=2, num_to_select=1)
    assert same_bits(one.vector, krum(rows, num_byzantine=2).vector)


def test_selecting_all_is_the_mean() -> None:
    rows = honest_rows(seed=4, num_rows=5, dim=10)
    everything = multi_krum(rows, num_byzantine=0)
    assert same_bits(everything.vector, mean(rows, weights=np.ones(5)).vector)


def test_duplicates_do_not_count_as_their_own_neighbours() -> None:
    rows = honest_rows(seed=5, num_rows=7, dim=10)
    rows[1] = rows[0]
    scores = multi_krum(rows, num_byzantine=2).scores
    assert scores is not None
    np.testing.assert_allclose(scores, brute_force_krum_scores(rows, 2), rtol=1e-12)


@pytest.mark.parametrize("num_to_select", [0, 8])
def test_number_to_select_is_checked(num_to_select: int) -> None:
    rows = honest_rows(seed=0, num_rows=10, dim=3)
    with pytest.raises(AggregationError, match=f"num_to_select={num_to_select} must be in"):
        multi_krum(rows, num_byzantine=3, num_to_select=num_to_select)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(TooFewUpdatesError, match="got n=10"):
        multi_krum(honest_rows(seed=0, num_rows=10, dim=3), num_byzantine=4)
