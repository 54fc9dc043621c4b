import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregators.errors import AggregationError
from aggregators.registry import RULES
from aggregators.rules.fedmi import DeviationGate, fedmi, fedmi_weights
from aggregators.rules.mutual_information import information_scores
from tests.aggregators.matrices import TIED_FLOAT, Matrix, honest_rows, matrices, same_bits

Outputs = NDArray[np.float64]


def probe_outputs(seed: int, num_rows: int, noise: float = 0.5) -> Outputs:
    """Logits that share most of their variation, as models of one task do."""
    generator = np.random.default_rng(seed)
    shared = generator.standard_normal((1, 16, 5))
    return shared + noise * generator.standard_normal((num_rows, 16, 5))


# What the published code does; it drops about 18 % of honest rows with Gaussian scores.
PUBLISHED_GATE = DeviationGate(max_deviations=2.0, scaled=False, floor=0.0)


def brute_force_kept(scores: list[float], k: float, two_sided: bool) -> list[bool]:
    """|score - median| <= k MAD, by sorting."""

    def middle(values: list[float]) -> float:
        ordered = sorted(values)
        return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2

    center = middle(scores)
    bound = k * max(0.05, middle([abs(score - center) for score in scores]))
    return [
        abs(score - center) <= bound if two_sided else center - score <= bound for score in scores
    ]


@pytest.mark.parametrize("two_sided", [True, False])
@given(seed=st.integers(0, 10_000), num_rows=st.integers(1, 12))
def test_agrees_with_brute_force(seed: int, num_rows: int, two_sided: bool) -> None:
    rows = honest_rows(seed, num_rows, dim=6)
    outputs = probe_outputs(seed, num_rows)
    # A third of the models answer something else.
    outputs[: num_rows // 3] = probe_outputs(seed + 1, num_rows // 3)
    result = fedmi(rows, probe_outputs=outputs, gate=DeviationGate(two_sided=two_sided))
    kept = brute_force_kept(information_scores(outputs).tolist(), 3 * 1.4826, two_sided)
    assert result.selected.tolist() == kept
    np.testing.assert_allclose(result.weights, np.array(kept) / sum(kept), rtol=1e-12)
    # The mean is rounded to float32.
    np.testing.assert_allclose(result.vector, rows[kept].mean(axis=0, dtype=np.float64), rtol=1e-6)


def test_the_published_gate_is_twice_the_plain_deviation() -> None:
    scores = np.array([0.0, 0.9, 1.0, 1.1, 1.19, 1.21])
    # Median 1.05; deviations 1.05, 0.15, 0.05, 0.05, 0.14, 0.16, of median 0.145: bound 0.29.
    kept = fedmi_weights(scores, gate=PUBLISHED_GATE).weights
    assert kept.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    # Scaled and threefold: bound 0.645.
    assert fedmi_weights(scores).weights.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert fedmi_weights(scores[1:], gate=PUBLISHED_GATE).weights.all()


def test_models_that_answer_at_random_are_dropped() -> None:
    outputs = probe_outputs(1, 10, noise=0.2)
    outputs[[2, 5, 7]] = np.random.default_rng(2).standard_normal((3, 16, 5))
    result = fedmi(honest_rows(1, 10, dim=4), probe_outputs=outputs)
    assert np.flatnonzero(~result.selected).tolist() == [2, 5, 7]
    assert result.scores is not None
    assert result.scores[[2, 5, 7]].min() > np.delete(result.scores, [2, 5, 7]).max()


def test_copies_are_dropped_from_above_only_by_a_two_sided_gate() -> None:
    # Honest models that agree little, and four that agree fully with each other.
    generator = np.random.default_rng(3)
    outputs = generator.standard_normal((12, 64, 10))
    outputs[:4] = outputs[0]
    rows = honest_rows(3, 12, dim=4)
    assert fedmi(rows, probe_outputs=outputs).selected.tolist() == [False] * 4 + [True] * 8
    one_sided = DeviationGate(two_sided=False)
    assert fedmi(rows, probe_outputs=outputs, gate=one_sided).selected.all()


def test_models_turned_upside_down_are_dropped_if_signed() -> None:
    outputs = probe_outputs(4, 9, noise=0.2)
    outputs[:2] *= -1.0
    rows = honest_rows(4, 9, dim=4)
    assert fedmi(rows, probe_outputs=outputs).selected.all()
    signed = fedmi(rows, probe_outputs=outputs, signed=True)
    assert signed.selected.tolist() == [False] * 2 + [True] * 7


@given(matrices(elements=TIED_FLOAT), st.integers(0, 1000), st.data())
def test_invariant_to_row_order_bit_for_bit(rows: Matrix, seed: int, data: st.DataObject) -> None:
    outputs = probe_outputs(seed, len(rows))
    order = data.draw(st.permutations(range(len(rows))))
    first = fedmi(rows, probe_outputs=outputs)
    second = fedmi(rows[order], probe_outputs=outputs[order])
    assert first.vector.tobytes() == second.vector.tobytes()
    assert same_bits(first.weights[order], second.weights)
    assert first.selected[order].tolist() == second.selected.tolist()
    assert first.scores is not None
    assert second.scores is not None
    assert same_bits(first.scores[order], second.scores)


@given(st.lists(st.floats(0.0, 7.0), min_size=1, max_size=12))
def test_keeps_at_least_one_row(scores: list[float]) -> None:
    assert fedmi_weights(np.array(scores)).weights.any()
    assert fedmi_weights(np.array(scores), gate=PUBLISHED_GATE).weights.any()


@pytest.mark.parametrize("num_rows", [1, 2, 3, 8])
def test_keeps_every_row_if_all_scores_are_equal(num_rows: int) -> None:
    rows = honest_rows(5, num_rows, dim=3)
    outputs = np.repeat(probe_outputs(5, 1), num_rows, axis=0)
    assert fedmi(rows, probe_outputs=outputs).selected.all()
    assert fedmi(rows, probe_outputs=np.zeros((num_rows, 4, 3))).selected.all()
    assert fedmi(np.zeros_like(rows), probe_outputs=outputs).vector.tolist() == [0.0, 0.0, 0.0]


def test_one_kept_row_can_move_the_result_anywhere() -> None:
    rows = honest_rows(6, 9, dim=3)
    rows[0] = 1e30
    result = fedmi(rows, probe_outputs=probe_outputs(6, 9, noise=0.1))
    assert result.selected[0]
    assert (result.vector > 1e28).all()
    assert RULES["fedmi"].breakdown(9, 1) == 0


def test_outputs_of_another_number_of_rows_are_refused() -> None:
    with pytest.raises(AggregationError, match=r"shape \(4, 16, 5\) must have an entry per row"):
        fedmi(honest_rows(0, 5, dim=3), probe_outputs=probe_outputs(0, 4))


def test_gates_that_could_shut_out_every_row_are_refused() -> None:
    with pytest.raises(AggregationError, match=r"max_deviations=0\.5"):
        DeviationGate(max_deviations=0.5)
    with pytest.raises(AggregationError, match=r"floor=nan"):
        DeviationGate(floor=float("nan"))
