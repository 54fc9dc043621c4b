import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.rules.krum import krum
from tests.aggregators.matrices import (
    ATTACKS,
    TIED_FLOAT,
    Matrix,
    attack,
    brute_force_krum_scores,
    exact_distance,
    honest_rows,
    matrices,
)


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
    assert result.vector.tolist() == rows[winner].tolist()
    assert result.selected.tolist() == [i == winner for i in range(num_rows)]
    assert result.weights.tolist() == result.selected.astype(float).tolist()


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "zeros"])
@pytest.mark.parametrize("seed", range(5))
def test_three_of_ten_attackers_are_not_chosen(name: str, seed: int) -> None:
    honest = honest_rows(seed, num_rows=7, dim=100)
    rows = np.vstack([attack(name, honest, 3), honest])
    assert not krum(rows, num_byzantine=3).selected[:3].any()


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("num_byzantine", [1, 2, 3])
def test_result_stays_near_an_honest_row(name: str, num_byzantine: int) -> None:
    honest = honest_rows(seed=3, num_rows=10 - num_byzantine, dim=50)
    rows = np.vstack([honest, attack(name, honest, num_byzantine)])
    vector = krum(rows, num_byzantine=num_byzantine).vector.astype(np.float32)
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


@pytest.mark.parametrize(("num_rows", "num_byzantine"), [(10, 4), (2, 0), (4, 1)])
def test_too_few_rows_are_refused(num_rows: int, num_byzantine: int) -> None:
    rows = honest_rows(seed=0, num_rows=num_rows, dim=3)
    message = f"num_byzantine={num_byzantine} must satisfy .* got n={num_rows}"
    with pytest.raises(TooFewUpdatesError, match=message):
        krum(rows, num_byzantine=num_byzantine)


def test_negative_f_is_refused() -> None:
    with pytest.raises(AggregationError, match="num_byzantine=-1"):
        krum(honest_rows(seed=0, num_rows=5, dim=3), num_byzantine=-1)
