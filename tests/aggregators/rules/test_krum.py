import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.rows.gram import Gram
from aggregators.rules.krum import krum, krum_scores, krum_weights
from tests.aggregators.matrices import (
    ANY_FLOAT,
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
from tests.peers import byzfl, flower_rules


def brute_force_scores(rows: Matrix, num_neighbours: int) -> list[float]:
    scores = []
    for i, row in enumerate(rows):
        others = sorted(exact_distance(row, other) for j, other in enumerate(rows) if j != i)
        scores.append(math.fsum(others[:num_neighbours]))
    return scores


@st.composite
def rows_with_copies(draw: st.DrawFn) -> Matrix:
    rows = draw(matrices(min_rows=3, elements=ANY_FLOAT | TIED_FLOAT)).copy()
    for target in draw(st.lists(st.integers(0, len(rows) - 1), max_size=4)):
        rows[target] = rows[draw(st.integers(0, len(rows) - 1))]
    return rows


@given(matrices(min_rows=3, elements=TIED_FLOAT), st.data())
def test_agrees_with_brute_force_on_ties(rows: Matrix, data: st.DataObject) -> None:
    num_byzantine = data.draw(st.integers(0, (len(rows) - 3) // 2))
    result = krum(rows, num_byzantine=num_byzantine)
    # Multiples of 1/4 are summed exactly in any order.
    scores = brute_force_krum_scores(rows, num_byzantine)
    assert result.scores is not None
    assert result.scores.tolist() == scores
    tied = [row for row, score in zip(rows, scores, strict=True) if score == min(scores)]
    least = min(tied, key=lambda row: [(float(x), not np.signbit(x)) for x in row])
    assert result.vector.tolist() == least.tolist()


@given(rows_with_copies(), st.data())
def test_chosen_row_has_the_least_score_whatever_the_values(
    rows: Matrix, data: st.DataObject
) -> None:
    num_byzantine = data.draw(st.integers(0, (len(rows) - 3) // 2))
    num_neighbours = data.draw(st.none() | st.integers(1, len(rows) - 1))
    result = krum(rows, num_byzantine=num_byzantine, num_neighbours=num_neighbours)
    scores = brute_force_scores(rows, num_neighbours or len(rows) - num_byzantine - 2)
    chosen = int(np.argmax(result.weights))
    # A near tie may fall either way.
    assert scores[chosen] <= min(scores) * (1 + 1e-9)
    np.testing.assert_array_equal(result.vector, rows[chosen])


# From four rows: of three, two are each other's only neighbour and always tie.
@given(st.integers(0, 10_000), st.integers(4, 12), st.data())
def test_agrees_with_brute_force_on_random_rows(
    seed: int, num_rows: int, data: st.DataObject
) -> None:
    num_byzantine = data.draw(st.integers(0, (num_rows - 3) // 2))
    rows = honest_rows(seed, num_rows, dim=7)
    result = krum(rows, num_byzantine=num_byzantine)
    scores = brute_force_krum_scores(rows, num_byzantine)
    assert result.scores is not None
    np.testing.assert_allclose(result.scores, scores, rtol=1e-12)
    winner = int(np.argmin(scores))
    assert result.selected.tolist() == [i == winner for i in range(num_rows)]
    assert result.weights.tolist() == result.selected.astype(float).tolist()


@pytest.mark.peers
@given(st.integers(0, 10_000), st.integers(4, 12), st.data())
def test_agrees_with_flwr(seed: int, num_rows: int, data: st.DataObject) -> None:
    num_byzantine = data.draw(st.integers(0, (num_rows - 3) // 2))
    rows = honest_rows(seed, num_rows, dim=5)
    updates = [([row], 1) for row in rows.astype(np.float64)]
    theirs = flower_rules.aggregate_krum(updates, num_byzantine, 0)
    np.testing.assert_array_equal(krum(rows, num_byzantine=num_byzantine).vector, theirs[0])


@pytest.mark.peers
@given(st.integers(0, 10_000), st.integers(4, 12), st.data())
def test_agrees_with_byzfl_which_sums_over_one_neighbour_more(
    seed: int, num_rows: int, data: st.DataObject
) -> None:
    num_byzantine = data.draw(st.integers(0, (num_rows - 3) // 2))
    rows = honest_rows(seed, num_rows, dim=5)
    result = krum(rows, num_byzantine=num_byzantine, num_neighbours=num_rows - num_byzantine - 1)
    theirs = byzfl.Krum(num_byzantine)(rows.astype(np.float64))
    np.testing.assert_array_equal(result.vector, theirs)


def test_number_of_neighbours_can_decide() -> None:
    # One neighbour: the pair at 0. Three: the row in the middle of the crowd.
    rows = np.array([[0.0], [0.0], [9.0], [10.0], [11.0]], dtype=np.float32)
    assert krum(rows, num_byzantine=0, num_neighbours=1).vector.tolist() == [0.0]
    assert krum(rows, num_byzantine=0, num_neighbours=2).vector.tolist() == [10.0]


@given(st.integers(0, 10_000))
def test_three_of_ten_at_a_thousandfold_are_never_chosen(seed: int) -> None:
    rows = honest_rows(seed, num_rows=10, dim=30)
    attackers = np.random.default_rng(seed).choice(10, size=3, replace=False)
    rows[attackers] *= 1000
    result = krum(rows, num_byzantine=3)
    assert not result.selected[attackers].any()
    assert result.selected.sum() == 1


@looped("name", [name for name in ATTACKS if name != "zeros"])
@looped("seed", range(5))
def test_three_of_ten_attackers_are_not_chosen(name: str, seed: int) -> None:
    honest = honest_rows(seed, num_rows=7, dim=100)
    rows = np.vstack([attack(name, honest, 3), honest])
    assert not krum(rows, num_byzantine=3).selected[:3].any()


@looped("name", ATTACKS)
@looped("num_byzantine", [1, 2, 3])
def test_result_stays_near_an_honest_row(name: str, num_byzantine: int) -> None:
    honest = honest_rows(seed=3, num_rows=10 - num_byzantine, dim=50)
    rows = np.vstack([honest, attack(name, honest, num_byzantine)])
    vector = krum(rows, num_byzantine=num_byzantine).vector
    spread = max(exact_distance(a, b) for a in honest for b in honest)
    nearest = min(exact_distance(vector, row) for row in honest)
    factor = (10 - num_byzantine - 2) / (10 - 2 * num_byzantine - 1)
    assert nearest <= factor * spread


def test_a_majority_of_attackers_wins() -> None:
    honest = honest_rows(seed=4, num_rows=3, dim=50)
    rows = np.vstack([honest, attack("copies_far", honest, 7)])
    assert krum(rows, num_byzantine=3).selected[3:].any()


def test_near_identical_rows_at_a_large_offset_are_told_apart() -> None:
    generator = np.random.default_rng(5)
    base = 1000.0 * generator.standard_normal(2000)
    noise = 1e-3 * generator.standard_normal((9, 2000))
    rows = (base + noise).astype(np.float32)
    result = krum(rows, num_byzantine=2)
    assert int(np.argmax(result.selected)) == int(np.argmin(brute_force_krum_scores(rows, 2)))


@given(rows_with_copies(), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_change_a_bit(rows: Matrix, random: Random) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    first, second = krum(rows, num_byzantine=0), krum(rows[order], num_byzantine=0)
    assert same_bits(first.vector, second.vector)
    assert first.scores is not None
    assert second.scores is not None
    assert same_bits(first.scores[order], second.scores)


@pytest.mark.parametrize("value", [0.0, -3.5, 1e30, 1e-30])
def test_equal_rows_give_that_row(value: float) -> None:
    rows = np.full((5, 4), value, dtype=np.float32)
    result = krum(rows, num_byzantine=1)
    np.testing.assert_array_equal(result.vector, rows[0])
    assert result.scores is not None
    assert result.scores.tolist() == [0.0] * 5
    assert result.selected.sum() == 1


def test_weights_follow_from_a_gram_matrix_alone() -> None:
    rows = honest_rows(seed=6, num_rows=9, dim=20)
    wide = rows.astype(np.float64)
    weights = krum_weights(Gram.from_inner(wide @ wide.T), num_byzantine=2).weights
    assert weights.tolist() == krum(rows, num_byzantine=2).weights.tolist()


@pytest.mark.parametrize(("num_rows", "num_byzantine"), [(10, 4), (2, 0), (4, 1)])
def test_too_few_rows_are_refused(num_rows: int, num_byzantine: int) -> None:
    rows = honest_rows(seed=0, num_rows=num_rows, dim=3)
    message = f"num_byzantine={num_byzantine} of krum must satisfy .* got n={num_rows}"
    with pytest.raises(TooFewUpdatesError, match=message):
        krum(rows, num_byzantine=num_byzantine)


def test_negative_f_is_refused() -> None:
    with pytest.raises(AggregationError, match="num_byzantine=-1"):
        krum(honest_rows(seed=0, num_rows=5, dim=3), num_byzantine=-1)


@pytest.mark.parametrize("num_neighbours", [0, 5])
def test_number_of_neighbours_is_checked(num_neighbours: int) -> None:
    message = rf"num_neighbours={num_neighbours} of krum must be in 1\.\.n - 1=4"
    with pytest.raises(AggregationError, match=message):
        krum_scores(np.zeros((5, 5)), num_byzantine=0, num_neighbours=num_neighbours)
