import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.rules.hybrid import HybridLimits, cap_by_median, hybrid
from tests.aggregators.matrices import (
    ATTACKS,
    TIED_FLOAT,
    Matrix,
    attack,
    honest_rows,
    matrices,
    same_bits,
)
from tests.looped import looped

Floats = NDArray[np.float64]

SAMPLE_COUNTS = st.integers(1, 50)
TRUST = st.sampled_from([0.0, 0.25, 0.5, 1.0])


def brute_force_weighted_median(pairs: list[tuple[float, float]]) -> float:
    """Lower and upper weighted medians by counting the weight on both sides, averaged."""
    half = sum(weight for _, weight in pairs) / 2
    medians = [
        value
        for value, _ in pairs
        if sum(weight for other, weight in pairs if other < value) <= half
        and sum(weight for other, weight in pairs if other > value) <= half
    ]
    return (min(medians) + max(medians)) / 2


def brute_force_hybrid(rows: Matrix, num_byzantine: int, weights: Floats, trust: Floats) -> Floats:
    """Clip, gate, weigh, trim, median: one row and one coordinate at a time."""
    norms = [math.sqrt(math.fsum(float(x) ** 2 for x in row)) for row in rows]
    median_norm = float(np.median(norms))
    cap = 2 * float(np.median(weights[weights > 0]))
    kept = []
    for row, norm, weight, belief in zip(rows, norms, weights, trust, strict=True):
        share = min(weight, cap) * belief
        if median_norm / 20 <= norm <= 5 * median_norm and share > 0:
            factor = min(1.0, 1.5 * median_norm / norm) if norm > 0 else 1.0
            kept.append(((row.astype(np.float64) * factor).astype(np.float32), share))
    if not kept:
        return np.zeros(rows.shape[1])
    trim = min(num_byzantine, (len(kept) - 1) // 2)
    out = []
    for j in range(rows.shape[1]):
        pairs = sorted((float(row[j]), share) for row, share in kept)
        out.append(brute_force_weighted_median(pairs[trim : len(pairs) - trim]))
    return np.array(out)


@given(st.integers(0, 10_000), st.integers(1, 11), st.data())
def test_agrees_with_brute_force(seed: int, num_rows: int, data: st.DataObject) -> None:
    num_byzantine = data.draw(st.integers(0, (num_rows - 1) // 2))
    counts = data.draw(st.lists(SAMPLE_COUNTS, min_size=num_rows, max_size=num_rows))
    beliefs = data.draw(st.lists(TRUST, min_size=num_rows, max_size=num_rows))
    weights, trust = np.array(counts, dtype=np.float64), np.array(beliefs)
    rows = honest_rows(seed, num_rows, dim=4)
    rows[::3] *= 3.0
    rows[::5] *= 100.0
    rows[::7] *= 1e-3
    result = hybrid(rows, num_byzantine=num_byzantine, weights=weights, trust=trust)
    expected = brute_force_hybrid(rows, num_byzantine, weights, trust)
    # Where the weights of two values meet at exactly one half, both are averaged, then rounded.
    np.testing.assert_allclose(result.vector, expected, rtol=1e-6)


@given(st.integers(0, 10_000), st.integers(1, 11), st.data())
def test_without_unusual_norms_and_weights_it_is_the_median(
    seed: int, num_rows: int, data: st.DataObject
) -> None:
    num_byzantine = data.draw(st.integers(0, (num_rows - 1) // 2))
    rows = honest_rows(seed, num_rows, dim=4)
    result = hybrid(rows, num_byzantine=num_byzantine)
    expected = np.median(rows.astype(np.float64), axis=0)
    np.testing.assert_allclose(result.vector, expected, rtol=1e-6)
    assert result.selected.all()
    np.testing.assert_allclose(result.weights, 1.0 / num_rows)


def test_one_outlier_of_ten_is_dropped_where_three_deviations_would_keep_it() -> None:
    rows = honest_rows(1, 10, dim=5)
    rows[4] *= 1000.0
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    assert norms[4] <= norms.mean() + 3 * norms.std()
    assert np.flatnonzero(~hybrid(rows, num_byzantine=1).selected).tolist() == [4]


def test_weights_are_capped_and_multiplied_by_trust() -> None:
    rows = honest_rows(2, 5, dim=3)
    weights = np.array([1e9, 10.0, 10.0, 5.0, 0.0])
    trust = np.array([1.0, 1.0, 0.5, 0.0, 1.0])
    result = hybrid(rows, num_byzantine=0, weights=weights, trust=trust)
    # The median of the weights above 0 is 10.
    np.testing.assert_allclose(result.weights, np.array([20.0, 10.0, 5.0, 0.0, 0.0]) / 35.0)
    assert result.selected.tolist() == [True, True, True, False, False]
    squared = HybridLimits(trust_exponent=2.0)
    result = hybrid(rows, num_byzantine=0, weights=weights, trust=trust, limits=squared)
    np.testing.assert_allclose(result.weights, np.array([20.0, 10.0, 2.5, 0.0, 0.0]) / 32.5)


@given(matrices(elements=TIED_FLOAT), st.data())
def test_invariant_to_row_order_bit_for_bit(rows: Matrix, data: st.DataObject) -> None:
    num_rows = len(rows)
    num_byzantine = data.draw(st.integers(0, (num_rows - 1) // 2))
    counts = data.draw(st.lists(SAMPLE_COUNTS, min_size=num_rows, max_size=num_rows))
    weights = np.array(counts, dtype=np.float64)
    trust = np.array(data.draw(st.lists(TRUST, min_size=num_rows, max_size=num_rows)))
    order = data.draw(st.permutations(range(num_rows)))
    first = hybrid(rows, num_byzantine=num_byzantine, weights=weights, trust=trust)
    second = hybrid(
        rows[order], num_byzantine=num_byzantine, weights=weights[order], trust=trust[order]
    )
    assert first.vector.tobytes() == second.vector.tobytes()
    assert same_bits(first.weights[order], second.weights)


@looped("name", ATTACKS)
@looped("num_byzantine", [1, 3, 4])
def test_result_lies_within_the_range_of_the_honest_rows(name: str, num_byzantine: int) -> None:
    honest = honest_rows(3, 9 - num_byzantine, dim=50)
    rows = np.vstack([attack(name, honest, num_byzantine), honest])
    weights = np.ones(9)
    weights[:num_byzantine] = 1e9
    vector = hybrid(rows, num_byzantine=num_byzantine, weights=weights).vector
    # No honest row is long enough to be clipped; the average of two values rounds.
    assert (vector >= honest.min(axis=0) * (1 - 1e-6)).all()
    assert (vector <= honest.max(axis=0) * (1 + 1e-6)).all()


def test_more_attackers_than_f_with_more_weight_win() -> None:
    honest = honest_rows(4, 5, dim=10)
    rows = np.vstack([honest, -honest[:4]])
    weights = np.array([1.0] * 5 + [2.0] * 4)
    assert (hybrid(rows, num_byzantine=1, weights=weights).vector < 0.0).all()
    assert (hybrid(rows, num_byzantine=4, weights=weights).vector > 0.0).all()


@given(matrices())
def test_no_coordinate_exceeds_the_clipped_norm(rows: Matrix) -> None:
    result = hybrid(rows, num_byzantine=(len(rows) - 1) // 2)
    median = float(np.median(np.linalg.norm(rows.astype(np.float64), axis=1)))
    # Norms below float32's smallest normal number round by up to its smallest one.
    assert (np.abs(result.vector.astype(np.float64)) <= 1.5 * median * (1 + 1e-6) + 1e-44).all()
    assert result.selected.any()


@pytest.mark.parametrize("factor", [1e-30, 0.125, 1e30])
def test_scaling_all_rows_scales_the_result(factor: float) -> None:
    rows = honest_rows(5, 9, dim=6)
    rows[:2] *= -3.0
    rows[2] *= 40.0
    scaled = hybrid((rows * factor).astype(np.float32), num_byzantine=2)
    expected = hybrid(rows, num_byzantine=2)
    assert scaled.selected.tolist() == expected.selected.tolist()
    # Both inputs and results are rounded to float32.
    np.testing.assert_allclose(scaled.vector / factor, expected.vector, rtol=1e-6)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 8])
def test_equal_rows_are_the_result(num_rows: int) -> None:
    rows = np.repeat(honest_rows(6, 1, dim=3), num_rows, axis=0)
    result = hybrid(rows, num_byzantine=(num_rows - 1) // 2)
    assert result.vector.tolist() == rows[0].tolist()
    assert result.selected.all()
    zeros = hybrid(np.zeros_like(rows), num_byzantine=0)
    assert zeros.vector.tolist() == [0.0, 0.0, 0.0]
    assert zeros.selected.all()


def test_without_any_trusted_row_the_result_is_zero() -> None:
    result = hybrid(honest_rows(7, 4, dim=3), num_byzantine=1, trust=np.zeros(4))
    assert result.vector.tolist() == [0.0, 0.0, 0.0]
    assert result.weights.tolist() == [0.0] * 4
    assert not result.selected.any()


def test_trimming_gives_way_where_dropped_rows_leave_too_few() -> None:
    rows = honest_rows(8, 5, dim=3)
    rows[3:] *= 1000.0
    result = hybrid(rows, num_byzantine=2)
    assert result.selected.tolist() == [True, True, True, False, False]
    expected = np.median(rows[:3].astype(np.float64), axis=0)
    np.testing.assert_allclose(result.vector, expected, rtol=1e-6)


def test_capping_ignores_weights_of_zero_and_leaves_its_argument() -> None:
    weights = np.array([0.0, 0.0, 0.0, 1.0, 9.0, 100.0])
    assert cap_by_median(weights, 2.0).tolist() == [0.0, 0.0, 0.0, 1.0, 9.0, 18.0]
    assert weights[-1] == 100.0
    assert cap_by_median(np.zeros(2), 2.0).tolist() == [0.0, 0.0]


def test_arguments_out_of_range_are_refused() -> None:
    rows = honest_rows(0, 4, dim=3)
    with pytest.raises(TooFewUpdatesError, match="num_byzantine=2 of hybrid"):
        hybrid(rows, num_byzantine=2)
    with pytest.raises(AggregationError, match="num_byzantine=-1 of hybrid"):
        hybrid(rows, num_byzantine=-1)
    with pytest.raises(AggregationError, match="weights="):
        hybrid(rows, num_byzantine=1, weights=np.array([1.0, -1.0, 1.0, 1.0]))
    for trust in ([1.0, 1.0], [1.0, 1.0, 1.0, 1.5], [1.0, 1.0, 1.0, math.nan]):
        with pytest.raises(AggregationError, match="trust="):
            hybrid(rows, num_byzantine=1, trust=np.array(trust))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("clip_factor", 0.0),
        ("max_norm_factor", 1.9),
        ("min_norm_factor", 1.1),
        ("weight_cap", 0.5),
        ("trust_exponent", -1.0),
    ],
)
def test_limits_that_could_shut_out_every_row_are_refused(field: str, value: float) -> None:
    with pytest.raises(AggregationError, match=f"{field}={value} of hybrid"):
        HybridLimits(**{field: value})
