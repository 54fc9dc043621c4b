import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregators.errors import AggregationError
from aggregators.registry import RULES
from aggregators.rule import RuleResult
from aggregators.rules.aegis import AegisOptions, AegisState, aegis
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


def state_of(result: RuleResult) -> AegisState:
    assert isinstance(result.state, AegisState)
    return result.state


def cosine(first: Floats, second: Floats) -> float:
    product = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / product if product > 0 else 0.0


def brute_force_aegis(
    rows: Matrix, samples: Floats, reputations: Floats, rounds: int
) -> tuple[Floats, Floats, Floats]:
    """The steps of the definition one by one: the result, the weights and the reputations."""
    wide = rows.astype(np.float64)
    n = len(rows)
    first = np.median(wide, axis=0).astype(np.float32).astype(np.float64)
    pool = [row for row in wide if cosine(row, first) >= -0.3]
    if 2 * len(pool) < n:
        pool = list(wide)
    center = np.median(pool, axis=0).astype(np.float32).astype(np.float64)
    distances = np.array([np.linalg.norm(row - center) for row in wide])
    turns = np.array([1 - cosine(row, center) for row in wide])
    middle = np.median(distances)
    spread = np.median(np.abs(distances - middle))
    variation = distances.std() / distances.mean() if distances.any() else 0.0
    tightened = min(1.0, rounds / 300) * max(0.0, 1 - 3 * variation)
    threshold = middle + max(4.0, 6 - (6 - 2) * tightened) * spread
    reputations = 0.95 * reputations + 0.05 * turns
    volumes = np.minimum(samples, 2 * np.median(samples))
    scores = volumes / (distances / (middle or 1.0) + 30 * turns + 20 * reputations + 1e-9)
    scores[distances > threshold] = 0.0
    weights = scores / scores.sum()
    return weights @ wide, weights, reputations


@given(st.integers(0, 10_000), st.integers(3, 12), st.sampled_from([0, 30, 150, 300, 1000]))
def test_agrees_with_brute_force(seed: int, num_rows: int, rounds: int) -> None:
    generator = np.random.default_rng(seed)
    rows = honest_rows(seed, num_rows, dim=8)
    rows[0] *= -1.0
    rows[1] *= 3.0
    samples = generator.integers(1, 100, num_rows).astype(np.float64)
    known = generator.uniform(0.0, 2.0, num_rows)
    keys = [f"device-{place}" for place in range(num_rows)]
    state = AegisState(reputations=dict(zip(keys, known.tolist(), strict=True)), round=rounds)
    result = aegis(rows, state=state, num_samples=samples, keys=keys)
    vector, weights, reputations = brute_force_aegis(rows, samples, known, rounds)
    np.testing.assert_allclose(result.weights, weights, rtol=1e-6, atol=1e-12)
    # The average is rounded to float32.
    np.testing.assert_allclose(result.vector, vector, rtol=1e-5, atol=1e-6)
    after = state_of(result)
    assert after.round == rounds + 1
    np.testing.assert_allclose([after.reputations[key] for key in keys], reputations, rtol=1e-9)


def test_rows_that_point_away_do_not_enter_the_second_median() -> None:
    honest = honest_rows(1, 7, dim=20)
    # Of the usual length, so that only the median itself can show the difference.
    rows = np.vstack([-honest[:3], honest])
    result = aegis(rows)
    assert result.scores is not None
    # Ten rows' median is dragged to the lower values; that of the seven lies in their midst.
    center = np.median(honest.astype(np.float64), axis=0)
    distances = np.linalg.norm(honest - center, axis=1)
    unit = np.median(np.linalg.norm(rows - center, axis=1))
    turns = np.array([1 - cosine(row, center) for row in honest.astype(np.float64)])
    expected = distances / unit + 30 * turns + 20 * 0.05 * turns
    np.testing.assert_allclose(result.scores[3:], expected, rtol=1e-5)


def test_if_fewer_than_half_point_along_all_enter_the_second_median() -> None:
    # Coordinate medians of rows far apart point away from most of them.
    rows = np.array([[-5, 1], [1, -5], [1, 1], [-5, 1.5], [1.5, -5]], dtype=np.float32)
    first = np.median(rows.astype(np.float64), axis=0)
    assert first.tolist() == [1.0, 1.0]
    assert sum(cosine(row.astype(np.float64), first) >= -0.3 for row in rows) == 1
    result = aegis(rows)
    assert result.scores is not None
    # The row that is the median has lost no credit, up to the rounding of its cosine.
    assert result.scores[2] == pytest.approx(0.0, abs=1e-12)


@given(matrices(elements=TIED_FLOAT), st.data())
def test_invariant_to_row_order_bit_for_bit(rows: Matrix, data: st.DataObject) -> None:
    num_rows = len(rows)
    keys = [str(place) for place in range(num_rows)]
    draw = st.lists(st.integers(1, 9), min_size=num_rows, max_size=num_rows)
    samples = np.array(data.draw(draw), dtype=np.float64)
    state = AegisState(reputations={"0": 1.0, "1": 0.5})
    order = data.draw(st.permutations(range(num_rows)))
    first = aegis(rows, state=state, num_samples=samples, keys=keys)
    second = aegis(
        rows[order], state=state, num_samples=samples[order], keys=[keys[i] for i in order]
    )
    assert first.vector.tobytes() == second.vector.tobytes()
    assert same_bits(first.weights[order], second.weights)
    assert first.scores is not None
    assert second.scores is not None
    assert same_bits(first.scores[order], second.scores)
    assert state_of(first) == state_of(second)


@pytest.mark.parametrize("factor", [1e-30, 0.125, 1e30])
def test_scaling_all_rows_scales_the_result(factor: float) -> None:
    rows = honest_rows(2, 9, dim=6)
    rows[:2] *= -3.0
    scaled = aegis((rows * factor).astype(np.float32))
    expected = aegis(rows)
    np.testing.assert_allclose(scaled.weights, expected.weights, rtol=1e-4)
    # Inputs are rounded to float32, which distances of rows this close magnify.
    np.testing.assert_allclose(scaled.vector / factor, expected.vector, rtol=1e-5)


@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([0, 150, 1000]))
def test_rows_kept_are_at_most_six_deviations_further_than_the_median_row(
    seed: int, num_rows: int, rounds: int
) -> None:
    generator = np.random.default_rng(seed)
    rows = honest_rows(seed, num_rows, dim=6)
    rows *= (10.0 ** generator.uniform(-1, 1, (num_rows, 1))).astype(np.float32)
    options = AegisOptions(least_cosine=-1.0)
    result = aegis(rows, state=AegisState(round=rounds), options=options)
    center = np.median(rows.astype(np.float64), axis=0).astype(np.float32)
    distances = np.linalg.norm(rows.astype(np.float64) - center, axis=1)
    spread = np.median(np.abs(distances - np.median(distances)))
    assert result.selected.any()
    kept = distances[result.selected]
    assert (kept <= (np.median(distances) + 6 * spread) * (1 + 1e-9)).all()


@looped("name", ATTACKS)
@looped("num_rows", [5, 10, 13])
def test_result_stays_near_the_honest_rows(name: str, num_rows: int) -> None:
    count = RULES["aegis"].breakdown(num_rows, 0)
    assert count >= 1
    honest = honest_rows(3, num_rows - count, dim=50)
    rows = np.vstack([attack(name, honest, count), honest])
    result = aegis(rows, num_samples=np.array([1e9] * count + [1.0] * (num_rows - count)))
    center = honest.mean(axis=0, dtype=np.float64)
    spread = max(float(np.linalg.norm(row - center)) for row in honest)
    assert np.linalg.norm(result.vector - center) <= 10 * spread
    if name != "zeros":
        assert not result.selected[:count].any()


def test_sample_counts_are_capped_at_twice_the_median() -> None:
    rows = np.repeat(honest_rows(4, 1, dim=3), 4, axis=0)
    result = aegis(rows, num_samples=np.array([1e9, 10.0, 10.0, 5.0]))
    np.testing.assert_allclose(result.weights, np.array([20.0, 10.0, 10.0, 5.0]) / 45.0)


def test_new_devices_start_with_the_best_reputation() -> None:
    rows = honest_rows(5, 6, dim=10)
    rows[1] = rows[0]
    state = AegisState(reputations={"a": 1.0, "gone": 0.7}, round=4)
    result = aegis(rows, state=state, keys=["a", "b", "c", "d", "e", "f"])
    assert result.weights[0] < 0.3 * result.weights[1]
    after = state_of(result)
    assert after.reputations["gone"] == 0.7
    assert after.reputations["a"] == pytest.approx(0.95 + after.reputations["b"])
    assert set(after.reputations) == {"a", "b", "c", "d", "e", "f", "gone"}
    assert state.reputations == {"a": 1.0, "gone": 0.7}


def test_a_device_that_keeps_pointing_away_loses_weight_round_by_round() -> None:
    rows = honest_rows(6, 9, dim=30)
    direction = np.where(np.arange(30) % 3 == 0, -1.0, 1.0)
    rows[0] = (rows[0] * direction).astype(np.float32)
    state: AegisState | None = None
    shares = []
    for _ in range(5):
        result = aegis(rows, state=state, options=AegisOptions(first_deviations=100.0))
        assert result.selected[0]
        state = state_of(result)
        shares.append(float(result.weights[0] / result.weights[1]))
    assert shares == sorted(shares, reverse=True)
    assert state is not None
    assert state.round == 5
    # By position where no keys are given.
    assert max(state.reputations, key=lambda key: state.reputations[key]) == "0"


def test_after_the_warm_up_the_gate_is_tighter_if_distances_agree() -> None:
    options = AegisOptions(least_deviations=0.0)
    rows = honest_rows(7, 30, dim=400)
    distances = np.linalg.norm(rows - np.median(rows, axis=0), axis=1)
    rows[0] = 1.0 + 1.1 * np.median(distances) / distances[0] * (rows[0] - 1.0)
    early = aegis(rows, state=AegisState(round=0), options=options)
    late = aegis(rows, state=AegisState(round=300), options=options)
    assert early.selected[0]
    assert not late.selected[0]
    # A far row makes the distances differ, which undoes the tightening.
    rows[1] = 100.0
    assert aegis(rows, state=AegisState(round=300), options=options).selected[0]


@pytest.mark.parametrize("num_rows", [1, 2, 3, 8])
def test_equal_rows_are_the_result(num_rows: int) -> None:
    rows = np.repeat(honest_rows(8, 1, dim=3), num_rows, axis=0)
    result = aegis(rows)
    np.testing.assert_allclose(result.vector, rows[0], rtol=1e-6)
    assert result.selected.all()
    zeros = aegis(np.zeros_like(rows))
    assert zeros.vector.tolist() == [0.0, 0.0, 0.0]
    assert zeros.selected.all()


def test_all_but_the_majority_of_equal_rows_is_dropped() -> None:
    rows = np.ones((5, 3), dtype=np.float32)
    rows[:2] = 1.5
    result = aegis(rows)
    assert result.selected.tolist() == [False, False, True, True, True]
    assert result.vector.tolist() == [1.0, 1.0, 1.0]
    assert result.scores is not None
    assert np.isfinite(result.scores).all()


def test_without_samples_in_the_kept_rows_the_result_is_zero() -> None:
    rows = np.ones((5, 3), dtype=np.float32)
    rows[0] = 1e6
    result = aegis(rows, num_samples=np.array([1.0, 0.0, 0.0, 0.0, 0.0]))
    assert result.vector.tolist() == [0.0, 0.0, 0.0]
    assert not result.selected.any()


@given(matrices())
def test_any_finite_rows_have_a_finite_result(rows: Matrix) -> None:
    result = aegis(rows)
    assert np.isfinite(result.vector).all()
    assert result.weights.sum() == pytest.approx(1.0)
    assert result.scores is not None
    assert np.isfinite(result.scores).all()


def test_arguments_out_of_range_are_refused() -> None:
    rows = honest_rows(0, 3, dim=3)
    with pytest.raises(AggregationError, match="one distinct key per row, n=3"):
        aegis(rows, keys=["a", "b"])
    with pytest.raises(AggregationError, match="one distinct key per row, n=3"):
        aegis(rows, keys=["a", "b", "a"])
    with pytest.raises(AggregationError, match="weights="):
        aegis(rows, num_samples=np.array([1.0, np.nan, 1.0]))
    with pytest.raises(AggregationError, match=r"reputation nan of 'a'"):
        AegisState(reputations={"a": float("nan")})
    with pytest.raises(AggregationError, match="round=-1"):
        AegisState(round=-1)


@looped(
    "field, value",
    [
        ("least_cosine", -1.5),
        ("cosine_weight", -1.0),
        ("reputation_decay", 1.5),
        ("warmup_rounds", 0),
        ("first_deviations", 1.0),
        ("variance_sensitivity", float("inf")),
    ],
)
def test_options_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(AggregationError, match=f"{field}={value} of aegis"):
        AegisOptions(**{field: value})  # type: ignore[arg-type] # one field is an int
