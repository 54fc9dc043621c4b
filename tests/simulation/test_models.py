"""The models; `test_torch_agreement` compares them with those of torch."""

import numpy as np
import pytest
from numpy.typing import NDArray

from simulation.errors import SampleModelError
from simulation.models import evaluate, initial_weights


def random_samples(
    num_samples: int, num_features: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    x = rng.random((num_samples, num_features), dtype=np.float32)
    return x, rng.integers(0, 10, num_samples)


def test_weights_fill_the_range_that_torch_draws_from() -> None:
    weights = initial_weights("mnist", 3)
    for name, fan_in in (("0.weight", 784), ("0.bias", 784), ("2.weight", 128), ("2.bias", 128)):
        bound = fan_in**-0.5
        assert np.abs(weights[name]).max() <= np.float32(bound)
    # 100,352 uniform values: the largest misses the bound by about bound / 50,000, and their
    # standard deviation is bound / sqrt(3) within 0.2 %.
    first = weights["0.weight"]
    assert np.abs(first).max() > 0.999 * 784**-0.5
    assert first.std() == pytest.approx(784**-0.5 / 3**0.5, rel=0.01)


def test_the_seed_alone_decides_the_weights() -> None:
    first, again, other = (initial_weights("digits", seed)["0.weight"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_overflowing_models_score_as_bad_not_as_errors() -> None:
    x, y = random_samples(20, 64, 0)
    huge = {name: value * np.float32(1e30) for name, value in initial_weights("digits", 0).items()}
    score = evaluate(huge, x, y)
    assert score.accuracy == 0.0
    assert score.loss == float("inf")


def test_large_finite_outputs_keep_a_finite_loss() -> None:
    weights = {"w": np.array([[1e4], [-1e4]], dtype=np.float32), "b": np.zeros(2, dtype=np.float32)}
    x = np.ones((2, 1), dtype=np.float32)
    score = evaluate(weights, x, np.array([0, 1]))
    assert score.accuracy == 0.5
    assert score.loss == pytest.approx((0 + 2e4) / 2)


@pytest.mark.parametrize(
    ("names", "num_features"),
    [
        ([], 64),
        (["0.weight", "0.bias", "2.weight"], 64),
        (["0.weight", "0.bias", "2.weight", "2.bias"], 63),
        (["0.bias", "0.weight"], 64),
        (["0.weight", "2.bias"], 64),
    ],
)
def test_what_is_no_model_is_refused(names: list[str], num_features: int) -> None:
    x, y = random_samples(3, num_features, 0)
    known = initial_weights("digits", 0)
    with pytest.raises(SampleModelError):
        evaluate({name: known[name] for name in names}, x, y)


def test_unknown_names_and_empty_samples_are_refused() -> None:
    with pytest.raises(SampleModelError, match="no model for data set 'cifar'"):
        initial_weights("cifar", 0)
    with pytest.raises(SampleModelError, match="0 samples"):
        evaluate(initial_weights("digits", 0), np.empty((0, 64), np.float32), np.empty(0, np.int64))
