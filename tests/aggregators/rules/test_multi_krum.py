from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.rules.krum import krum
from aggregators.rules.mean import mean
from aggregators.rules.multi_krum import multi_krum
from tests.aggregators.matrices import (
    ANY_FLOAT,
    ATTACKS,
    TIED_FLOAT,
    Matrix,
    attack,
    brute_force_krum_scores,
    honest_rows,
    matrices,
    same_bits,
)
from tests.peers import byzfl, flower_rules

# The vector is rounded once to float32.
ROUNDING = 2.0**-23


@pytest.mark.parametrize("num_to_select", [1, 3, 8, None])
def test_agrees_with_brute_force(num_to_select: int | None) -> None:
    rows = honest_rows(seed=1, num_rows=11, dim=40)
    result = multi_krum(rows, num_byzantine=3, num_to_select=num_to_select)
    best = np.argsort(brute_force_krum_scores(rows, 3))[: num_to_select or 8]
    assert set(np.flatnonzero(result.selected)) == set(best)
    expected = rows[best].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(result.vector, expected, rtol=ROUNDING)
    np.testing.assert_allclose(result.weights @ rows, expected, rtol=1e-6)
    assert result.weights.sum() == pytest.approx(1.0)


@given(matrices(min_rows=3, elements=ANY_FLOAT | TIED_FLOAT), st.data())
def test_no_row_left_out_has_a_lesser_score(rows: Matrix, data: st.DataObject) -> None:
    num_byzantine = data.draw(st.integers(0, (len(rows) - 3) // 2))
    count = data.draw(st.integers(1, len(rows) - num_byzantine))
    result = multi_krum(rows, num_byzantine=num_byzantine, num_to_select=count)
    scores = np.array(brute_force_krum_scores(rows, num_byzantine))
    assert result.selected.sum() == count
    out = scores[~result.selected]
    # A near tie may fall either way.
    assert scores[result.selected].max() <= out.min(initial=np.inf) * (1 + 1e-9)


# From five rows: with one neighbour, two rows are each other's and tie.
@pytest.mark.peers
@given(st.integers(0, 10_000), st.integers(5, 12), st.data())
def test_agrees_with_flwr_for_equal_sample_counts(
    seed: int, num_rows: int, data: st.DataObject
) -> None:
    num_byzantine = data.draw(st.integers(0, (num_rows - 3) // 2))
    count = data.draw(st.integers(1, num_rows - num_byzantine))
    rows = honest_rows(seed, num_rows, dim=5)
    updates = [([row], 7) for row in rows.astype(np.float64)]
    theirs = flower_rules.aggregate_krum(updates, num_byzantine, count)
    ours = multi_krum(rows, num_byzantine=num_byzantine, num_to_select=count)
    np.testing.assert_allclose(ours.vector, theirs[0], rtol=ROUNDING)


@pytest.mark.peers
@given(st.integers(0, 10_000), st.integers(4, 12), st.data())
def test_agrees_with_byzfl_which_sums_over_one_neighbour_more(
    seed: int, num_rows: int, data: st.DataObject
) -> None:
    num_byzantine = data.draw(st.integers(0, (num_rows - 3) // 2))
    rows = honest_rows(seed, num_rows, dim=5)
    theirs = byzfl.MultiKrum(num_byzantine)(rows.astype(np.float64))
    ours = multi_krum(
        rows, num_byzantine=num_byzantine, num_neighbours=num_rows - num_byzantine - 1
    )
    np.testing.assert_allclose(ours.vector, theirs, rtol=ROUNDING)


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


@given(matrices(min_rows=5, elements=TIED_FLOAT), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_change_a_bit(rows: Matrix, random: Random) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    first = multi_krum(rows, num_byzantine=1, num_to_select=2)
    second = multi_krum(rows[order], num_byzantine=1, num_to_select=2)
    assert same_bits(first.vector, second.vector)


def test_of_equal_scores_the_lesser_rows_go_first() -> None:
    rows = np.array([[1.0], [0.0], [1.0], [0.0]], dtype=np.float32)
    result = multi_krum(rows, num_byzantine=0, num_to_select=2, num_neighbours=1)
    assert result.selected.tolist() == [False, True, False, True]


def test_duplicates_do_not_count_as_their_own_neighbours() -> None:
    rows = honest_rows(seed=5, num_rows=7, dim=10)
    rows[1] = rows[0]
    scores = multi_krum(rows, num_byzantine=2).scores
    assert scores is not None
    np.testing.assert_allclose(scores, brute_force_krum_scores(rows, 2), rtol=1e-12)


@pytest.mark.parametrize("num_to_select", [0, 8])
def test_number_to_select_is_checked(num_to_select: int) -> None:
    rows = honest_rows(seed=0, num_rows=10, dim=3)
    message = f"num_to_select={num_to_select} of multi-krum must be"
    with pytest.raises(AggregationError, match=message):
        multi_krum(rows, num_byzantine=3, num_to_select=num_to_select)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(TooFewUpdatesError, match=r"of multi-krum must satisfy .* got n=10"):
        multi_krum(honest_rows(seed=0, num_rows=10, dim=3), num_byzantine=4)
