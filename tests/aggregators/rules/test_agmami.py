import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregators.errors import AggregationError
from aggregators.registry import RULES
from aggregators.rules.agmami import agmami, agmami_weights
from aggregators.rules.mutual_information import information_scores
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


def probe_outputs(seed: int, num_rows: int, noise: float = 0.5) -> Floats:
    """Logits that share most of their variation, as models of one task do."""
    generator = np.random.default_rng(seed)
    shared = generator.standard_normal((1, 16, 5))
    return shared + noise * generator.standard_normal((num_rows, 16, 5))


def objective(scores: Floats, center: float, alphas: Floats, strength: float) -> float:
    """Li, Ngai and Voigt (2022), Equation 5, in one dimension."""
    return float(alphas @ np.abs(scores - center) + strength / 2 * alphas @ alphas)


def best_alphas(distances: Floats, strength: float) -> Floats:
    """Minimise over the simplex: bisection on the level, of which the sum is monotone."""
    low, high = float(distances.min()), float(distances.max()) + strength
    for _ in range(200):
        level = (low + high) / 2
        if np.maximum(level - distances, 0.0).sum() < strength:
            low = level
        else:
            high = level
    return np.asarray(np.maximum(level - distances, 0.0) / strength)


@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([0.01, 0.1, 0.3, 3.0]))
def test_weights_and_center_are_best_for_each_other(
    seed: int, num_rows: int, regularization: float
) -> None:
    scores = np.random.default_rng(seed).gamma(2.0, size=num_rows)
    found = agmami_weights(scores, regularization=regularization, alpha_weighted=True)
    assert found.scores is not None
    strength = regularization * num_rows
    alphas = found.weights / found.total
    # The bisection stops at the resolution of float64 at the level.
    np.testing.assert_allclose(alphas, best_alphas(found.scores, strength), atol=1e-9)
    assert alphas.sum() == pytest.approx(1.0)
    # A geometric median in one dimension lies on a point or between two.
    reached = float(alphas @ found.scores) + strength / 2 * float(alphas @ alphas)
    for center in [*scores, float(np.median(scores))]:
        assert reached <= objective(scores, center, alphas, strength) * (1 + 1e-9)


@given(st.integers(0, 10_000), st.integers(1, 12), st.booleans())
def test_averages_the_clipped_rows_of_positive_weight(
    seed: int, num_rows: int, alpha_weighted: bool
) -> None:
    rows = honest_rows(seed, num_rows, dim=6)
    rows[::4] *= 5.0
    outputs = probe_outputs(seed, num_rows)
    outputs[1::3] = probe_outputs(seed + 1, len(outputs[1::3]))
    result = agmami(rows, probe_outputs=outputs, alpha_weighted=alpha_weighted)
    found = agmami_weights(information_scores(outputs), alpha_weighted=True).weights
    votes = found if alpha_weighted else (found > 0.0).astype(float)
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    factors = np.minimum(1.0, 1.5 * np.median(norms) / norms)
    weights = votes * factors / votes.sum()
    np.testing.assert_allclose(result.weights, weights, rtol=1e-6, atol=1e-12)
    assert result.selected.tolist() == (found > 0.0).tolist()
    # The average is rounded to float32.
    np.testing.assert_allclose(result.vector, weights @ rows.astype(np.float64), rtol=1e-6)


def test_models_that_answer_at_random_are_dropped() -> None:
    outputs = probe_outputs(1, 10, noise=0.1)
    outputs[[2, 5, 7]] = np.random.default_rng(2).standard_normal((3, 16, 5))
    rows = honest_rows(1, 10, dim=4)
    result = agmami(rows, probe_outputs=outputs, regularization=0.05)
    assert np.flatnonzero(~result.selected).tolist() == [2, 5, 7]


def test_stronger_regularization_keeps_more_rows() -> None:
    scores = np.random.default_rng(3).gamma(2.0, size=11)
    kept = [
        int(agmami_weights(scores, regularization=strength).weights.sum())
        for strength in (0.001, 0.01, 0.1, 1.0, 100.0)
    ]
    assert kept == sorted(kept)
    assert kept[0] < kept[-1] == 11


@given(matrices(elements=TIED_FLOAT), st.integers(0, 1000), st.booleans(), st.data())
def test_invariant_to_row_order_bit_for_bit(
    rows: Matrix, seed: int, alpha_weighted: bool, data: st.DataObject
) -> None:
    outputs = probe_outputs(seed, len(rows))
    order = data.draw(st.permutations(range(len(rows))))
    first = agmami(rows, probe_outputs=outputs, alpha_weighted=alpha_weighted)
    second = agmami(rows[order], probe_outputs=outputs[order], alpha_weighted=alpha_weighted)
    assert first.vector.tobytes() == second.vector.tobytes()
    assert same_bits(first.weights[order], second.weights)
    assert first.scores is not None
    assert second.scores is not None
    assert same_bits(first.scores[order], second.scores)


@looped("name", ATTACKS)
@looped("num_rows", [3, 10, 11])
def test_norm_of_the_result_is_bounded_by_the_median_norm(name: str, num_rows: int) -> None:
    count = RULES["agmami"].breakdown(num_rows, 0)
    honest = honest_rows(4, num_rows - count, dim=20)
    rows = np.vstack([attack(name, honest, count), honest])
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    # The attackers' models answer as all others do.
    vector = agmami(rows, probe_outputs=probe_outputs(4, num_rows, noise=0.1)).vector
    assert np.linalg.norm(vector.astype(np.float64)) <= 1.5 * np.median(norms) * (1 + 1e-6)
    assert np.median(norms) <= norms[count:].max()


@given(st.lists(st.floats(0.0, 7.0), min_size=1, max_size=12), st.sampled_from([0.0, 1e-9, 0.3]))
def test_keeps_at_least_one_row(scores: list[float], regularization: float) -> None:
    found = agmami_weights(np.array(scores), regularization=regularization)
    assert found.weights.any()
    assert found.total == found.weights.sum()


@pytest.mark.parametrize("num_rows", [1, 2, 3, 8])
def test_keeps_every_row_if_all_scores_are_equal(num_rows: int) -> None:
    rows = np.repeat(honest_rows(5, 1, dim=3), num_rows, axis=0)
    outputs = np.repeat(probe_outputs(5, 1), num_rows, axis=0)
    result = agmami(rows, probe_outputs=outputs)
    assert result.selected.all()
    assert result.vector.tolist() == rows[0].tolist()
    assert agmami(rows, probe_outputs=np.zeros((num_rows, 4, 3))).selected.all()
    zeros = agmami(np.zeros_like(rows), probe_outputs=outputs)
    assert zeros.vector.tolist() == [0.0, 0.0, 0.0]
    assert zeros.selected.all()


def test_arguments_out_of_range_are_refused() -> None:
    rows, outputs = honest_rows(0, 4, dim=3), probe_outputs(0, 4)
    with pytest.raises(AggregationError, match=r"regularization=-1\.0 of agmami"):
        agmami(rows, probe_outputs=outputs, regularization=-1.0)
    with pytest.raises(AggregationError, match=r"clip_factor=0\.0 of agmami"):
        agmami(rows, probe_outputs=outputs, clip_factor=0.0)
    with pytest.raises(AggregationError, match="probe_outputs of shape"):
        agmami(rows, probe_outputs=outputs[:3])
