from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.rows.dense_rows import as_rows
from aggregators.rules.bulyan import bulyan, bulyan_selection
from aggregators.rules.krum import krum_scores
from aggregators.rules.mean import mean
from tests.aggregators.matrices import (
    ATTACKS,
    TIED_FLOAT,
    Matrix,
    attack,
    brute_force_krum_scores,
    exact_distance,
    honest_rows,
    matrices,
    same_bits,
)
from tests.looped import looped
from tests.peers import flower_rules

# The vector is rounded once to float32.
ROUNDING = 2.0**-23


def sorted_rows(rows: Matrix) -> Matrix:
    """Sort rows of finite values without -0.0 lexicographically."""
    return rows[np.lexsort(rows.T[::-1])]


def brute_force_selection(rows: Matrix, num_byzantine: int) -> list[int]:
    """El Mhamdi et al. (2018): Krum, again and again, on the rows that are left."""
    left = list(range(len(rows)))
    selected: list[int] = []
    while len(selected) < len(rows) - 2 * num_byzantine:
        count = max(1, len(left) - num_byzantine - 2)
        scores = []
        for i in left:
            others = sorted(exact_distance(rows[i], rows[j]) for j in left if j != i)
            scores.append(sum(others[:count]))
        selected.append(left.pop(scores.index(min(scores))))
    return selected


def brute_force_mean_around_median(rows: Matrix, keep: int) -> NDArray[np.float64]:
    columns = []
    for column in rows.astype(np.float64).T:
        middle = float(np.median(column))
        nearest = sorted(column.tolist(), key=lambda x: (abs(x - middle), x))
        columns.append(sum(nearest[:keep]) / keep)
    return np.array(columns)


@given(matrices(min_rows=3, max_rows=13, elements=TIED_FLOAT), st.data())
def test_selection_agrees_with_brute_force_on_ties(rows: Matrix, data: st.DataObject) -> None:
    rows = sorted_rows(rows + np.float32(0.0))
    num_byzantine = data.draw(st.integers(0, (len(rows) - 3) // 4))
    # Multiples of 1/4 are summed exactly in any order.
    selection = bulyan_selection(as_rows(rows).gram(), num_byzantine)
    assert selection == brute_force_selection(rows, num_byzantine)


@given(st.integers(0, 10_000), st.integers(0, 2), st.integers(0, 4))
def test_agrees_with_brute_force_on_random_rows(seed: int, num_byzantine: int, more: int) -> None:
    num_rows = 4 * num_byzantine + 3 + more
    rows = sorted_rows(honest_rows(seed, num_rows, dim=5))
    rows[:num_byzantine] *= np.float32(1e30)
    rows = sorted_rows(rows)
    result = bulyan(rows, num_byzantine=num_byzantine)
    selection = brute_force_selection(rows, num_byzantine)
    assert bulyan_selection(as_rows(rows).gram(), num_byzantine) == selection
    assert set(np.flatnonzero(result.selected)) == set(selection)
    expected = brute_force_mean_around_median(rows[selection], num_rows - 4 * num_byzantine)
    np.testing.assert_allclose(result.vector, expected, rtol=ROUNDING)
    np.testing.assert_array_equal(result.weights, result.selected / len(selection))
    assert result.scores is not None
    np.testing.assert_allclose(
        result.scores, brute_force_krum_scores(rows, num_byzantine), rtol=1e-9
    )


def test_selection_among_many_rows_agrees_with_brute_force() -> None:
    rows = np.random.default_rng(7).integers(-9, 10, (43, 3)).astype(np.float32)
    assert bulyan_selection(as_rows(rows).gram(), 10) == brute_force_selection(rows, 10)


@pytest.mark.peers
@given(st.integers(0, 10_000), st.integers(0, 2), st.integers(0, 4))
def test_agrees_with_flwr(seed: int, num_byzantine: int, more: int) -> None:
    # flwr settles ties by position: two rows that are each other's only neighbour always tie.
    rows = sorted_rows(honest_rows(seed, 4 * num_byzantine + 3 + more, dim=5))
    updates = [([row], 1) for row in rows.astype(np.float64)]
    krum_rule = flower_rules.aggregate_krum
    theirs = flower_rules.aggregate_bulyan(updates, num_byzantine, krum_rule, to_keep=0)
    ours = bulyan(rows, num_byzantine=num_byzantine).vector
    np.testing.assert_allclose(ours, theirs[0], rtol=ROUNDING)


def test_without_rescoring_the_best_scores_of_one_krum_are_selected() -> None:
    rows = honest_rows(seed=3, num_rows=15, dim=4)
    gram = as_rows(rows).gram()
    best = np.argsort(krum_scores(gram.squared_distances, num_byzantine=3), kind="stable")[:9]
    assert bulyan_selection(gram, 3, rescore=False) == best.tolist()
    result = bulyan(rows, num_byzantine=3, rescore=False)
    expected = brute_force_mean_around_median(rows[best], 3)
    np.testing.assert_allclose(result.vector, expected, rtol=ROUNDING)
    assert set(np.flatnonzero(result.selected)) == set(best)


def test_rescoring_can_change_the_selection() -> None:
    differ = 0
    for seed in range(20):
        gram = as_rows(honest_rows(seed, num_rows=11, dim=2)).gram()
        again, once = bulyan_selection(gram, 2), bulyan_selection(gram, 2, rescore=False)
        differ += set(again) != set(once)
    assert differ > 0


@given(matrices(min_rows=7, elements=TIED_FLOAT), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_change_a_bit(rows: Matrix, random: Random) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    first, second = bulyan(rows, num_byzantine=1), bulyan(rows[order], num_byzantine=1)
    assert same_bits(first.vector, second.vector)


@looped("name", ATTACKS)
@looped("num_byzantine", [1, 2, 3])
def test_attackers_cannot_leave_the_widened_range_of_the_others(
    name: str, num_byzantine: int
) -> None:
    honest = honest_rows(seed=2, num_rows=15 - num_byzantine, dim=200)
    rows = np.vstack([honest, attack(name, honest, num_byzantine)])
    vector = bulyan(rows, num_byzantine=num_byzantine).vector
    width = honest.max(axis=0) - honest.min(axis=0)
    assert (vector >= honest.min(axis=0) - width).all()
    assert (vector <= honest.max(axis=0) + width).all()


def test_far_attackers_apart_from_each_other_are_not_selected() -> None:
    honest = honest_rows(seed=2, num_rows=12, dim=50)
    factors = np.array([[100], [1000], [-1000]], dtype=np.float32)
    rows = np.vstack([honest, honest[:3] * factors])
    assert not bulyan(rows, num_byzantine=3).selected[12:].any()


def test_attackers_that_copy_each_other_are_selected_late_and_dropped_by_coordinate() -> None:
    # With 7 rows left a score is the sum over 2 neighbours: 3 copies have a score of 0.
    honest = honest_rows(seed=2, num_rows=12, dim=50)
    rows = np.vstack([honest, attack("copies_far", honest, 3)])
    result = bulyan(rows, num_byzantine=3)
    assert bulyan_selection(as_rows(rows).gram(), 3)[-1] >= 12
    assert result.selected[12:].sum() == 1
    assert (result.vector <= honest.max(axis=0)).all()


def test_with_f_zero_it_is_the_mean() -> None:
    rows = honest_rows(seed=4, num_rows=6, dim=20)
    result = bulyan(rows, num_byzantine=0)
    np.testing.assert_allclose(result.vector, mean(rows).vector, rtol=ROUNDING)
    assert result.selected.all()


@pytest.mark.parametrize("value", [0.0, -3.5, 1e30, 1e-30])
def test_equal_rows_give_that_row(value: float) -> None:
    rows = np.full((7, 4), value, dtype=np.float32)
    result = bulyan(rows, num_byzantine=1)
    np.testing.assert_allclose(result.vector, rows[0], rtol=ROUNDING)
    assert result.selected.sum() == 5


@pytest.mark.parametrize("rescore", [False, True])
def test_too_few_rows_are_refused(rescore: bool) -> None:
    rows = honest_rows(seed=0, num_rows=10, dim=3)
    with pytest.raises(TooFewUpdatesError, match=r"num_byzantine=2 of bulyan .* got n=10"):
        bulyan(rows, num_byzantine=2, rescore=rescore)
    with pytest.raises(TooFewUpdatesError, match=r"num_byzantine=2 of bulyan .* got n=10"):
        bulyan_selection(as_rows(rows).gram(), 2, rescore=rescore)


def test_negative_f_is_refused() -> None:
    with pytest.raises(AggregationError, match="num_byzantine=-1"):
        bulyan(honest_rows(seed=0, num_rows=5, dim=3), num_byzantine=-1)
