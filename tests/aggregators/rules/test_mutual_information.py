import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from aggregators.errors import AggregationError
from aggregators.rules import mutual_information
from aggregators.rules.mutual_information import (
    MAX_SQUARED_CORRELATION,
    information_scores,
    pairwise_information,
)
from tests.aggregators.matrices import same_bits
from tests.looped import looped

Outputs = NDArray[np.float64]

MOST = -0.5 * math.log(1.0 - MAX_SQUARED_CORRELATION)

OUTPUTS = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 7), st.integers(1, 5), st.integers(3, 6)),
    elements=st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([-1.0, 0.0, 1.0, 2.0]),
)


def brute_force_information(outputs: Outputs, *, signed: bool = False) -> Outputs:
    """Gaussian information by numpy's own correlation, pair by pair and sample by sample."""
    num_rows, num_samples, _ = outputs.shape
    found = np.zeros((num_rows, num_rows))
    for i in range(num_rows):
        for j in range(num_rows):
            if i == j:
                continue
            for s in range(num_samples):
                rho = float(np.corrcoef(outputs[i, s], outputs[j, s])[0, 1])
                information = -0.5 * math.log(1.0 - min(rho * rho, 1.0 - 1e-6))
                found[i, j] += math.copysign(information, rho) if signed else information
    found /= num_samples
    return found


def random_outputs(seed: int, num_rows: int, num_samples: int = 5, num_outputs: int = 4) -> Outputs:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((num_rows, num_samples, num_outputs))


@pytest.mark.parametrize("signed", [False, True])
@given(seed=st.integers(0, 10_000), num_rows=st.integers(1, 5), num_outputs=st.integers(3, 12))
def test_agrees_with_brute_force(seed: int, num_rows: int, num_outputs: int, signed: bool) -> None:
    outputs = random_outputs(seed, num_rows, num_outputs=num_outputs)
    expected = brute_force_information(outputs, signed=signed)
    found = pairwise_information(outputs, signed=signed)
    # -1/2 log(1 - rho^2) near rho = 1 magnifies rounding of rho by up to 1e6.
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    scores = information_scores(outputs, signed=signed)
    expected_scores = expected.sum(axis=1) / max(1, num_rows - 1)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-9, atol=1e-9)


def test_models_of_one_output_are_correlated_across_samples() -> None:
    outputs = random_outputs(1, 4, num_samples=9, num_outputs=1)
    found = pairwise_information(outputs)
    for i in range(4):
        for j in range(4):
            rho = float(np.corrcoef(outputs[i, :, 0], outputs[j, :, 0])[0, 1])
            expected = 0.0 if i == j else -0.5 * math.log(1.0 - min(rho * rho, 1.0 - 1e-6))
            assert found[i, j] == pytest.approx(expected, rel=1e-9)


@given(OUTPUTS, st.randoms(use_true_random=False))
def test_permuting_rows_permutes_the_result_bit_for_bit(outputs: Outputs, random: object) -> None:
    assert hasattr(random, "shuffle")
    order = list(range(len(outputs)))
    random.shuffle(order)
    found = pairwise_information(outputs)
    assert same_bits(pairwise_information(outputs[order]), found[np.ix_(order, order)])
    assert same_bits(information_scores(outputs[order]), information_scores(outputs)[order])


@pytest.mark.parametrize("num_outputs", [1, 3, 10, 33])
def test_permuting_many_rows_permutes_the_scores_bit_for_bit(num_outputs: int) -> None:
    outputs = random_outputs(2, 23, num_samples=17, num_outputs=num_outputs)
    order = np.random.default_rng(3).permutation(23)
    assert same_bits(information_scores(outputs[order]), information_scores(outputs)[order])


def test_blocks_of_samples_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = random_outputs(4, 5, num_samples=11, num_outputs=3)
    whole = pairwise_information(outputs)
    monkeypatch.setattr(mutual_information, "_BLOCK_ENTRIES", 2 * 5 * 3)
    # The blocks' sums are added in another order.
    np.testing.assert_allclose(pairwise_information(outputs), whole, rtol=1e-12)


@given(OUTPUTS)
def test_symmetric_finite_and_within_bounds(outputs: Outputs) -> None:
    found = pairwise_information(outputs)
    assert same_bits(found, found.T.copy())
    assert (np.diagonal(found) == 0.0).all()
    assert (found >= 0.0).all()
    assert (found <= MOST * (1.0 + 1e-12)).all()
    signed = pairwise_information(outputs, signed=True)
    assert (np.abs(signed) <= MOST * (1.0 + 1e-12)).all()


@pytest.mark.parametrize("factor", [1e-30, 3.0, 1e30])
def test_shifting_or_scaling_a_rows_outputs_leaves_the_result(factor: float) -> None:
    outputs = random_outputs(5, 6)
    moved = outputs.copy()
    moved[2] = factor * (outputs[2] + 7.0)
    # Shifting by 7 loses about three bits of each output.
    np.testing.assert_allclose(
        pairwise_information(moved), pairwise_information(outputs), rtol=1e-8
    )


@pytest.mark.parametrize("useless", [0.0, 0.1, 1e300, math.nan, math.inf])
def test_samples_with_equal_or_non_finite_outputs_tell_nothing(useless: float) -> None:
    outputs = random_outputs(6, 4, num_samples=3)
    outputs[1, 0] = useless
    without = outputs[:, 1:]
    expected = pairwise_information(without)[1] * 2.0 / 3.0
    np.testing.assert_allclose(pairwise_information(outputs)[1], expected, rtol=1e-12)
    outputs[1] = useless
    assert (pairwise_information(outputs)[1] == 0.0).all()
    assert information_scores(outputs)[1] == 0.0


def test_copies_know_all_about_each_other_and_opposites_too_unless_signed() -> None:
    outputs = np.repeat(random_outputs(7, 1), 3, axis=0)
    outputs[2] *= -1.0
    found = pairwise_information(outputs)
    np.testing.assert_allclose(found[~np.eye(3, dtype=bool)], MOST, rtol=1e-9)
    signed = pairwise_information(outputs, signed=True)
    assert signed[0, 1] == pytest.approx(MOST, rel=1e-9)
    assert signed[0, 2] == pytest.approx(-MOST, rel=1e-9)


def test_outputs_of_any_magnitude_give_the_same_information() -> None:
    outputs = random_outputs(8, 3)
    for factor in (1e-300, 1e300):
        np.testing.assert_allclose(
            pairwise_information(outputs * factor), pairwise_information(outputs), rtol=1e-9
        )


@looped("shape", [(4, 5, 2), (4, 2, 1), (4, 5), (0, 5, 3), (4, 0, 3), (4, 5, 0)])
def test_shapes_without_a_correlation_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(AggregationError, match="probe_outputs of shape"):
        pairwise_information(np.ones(shape))


def test_inputs_are_not_modified() -> None:
    outputs = random_outputs(9, 3)
    before = outputs.copy()
    information_scores(outputs)
    assert same_bits(outputs, before)
