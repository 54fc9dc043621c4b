"""The arithmetic of dense layers, against numbers that are found without any of it."""

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from simulation.dense_layers import Layer, Values, descend, forward

# A softmax regression, a perceptron with one hidden layer, and a deep one.
STACKS = [(5, 3), (5, 4, 3), (4, 6, 5, 3)]
MODELS, SAMPLES, RATE = 2, 7, 0.25


def stack(sizes: tuple[int, ...]) -> tuple[list[Layer], NDArray[np.float64], NDArray[np.int64]]:
    """Several random models in float64, whose rounding does not hide an error."""
    rng = np.random.default_rng(7)
    layers: list[Layer] = [
        (rng.standard_normal((MODELS, b, a)), rng.standard_normal((MODELS, 1, b)))
        for a, b in pairwise(sizes)
    ]
    x = rng.standard_normal((MODELS, SAMPLES, sizes[0]))
    return layers, x, rng.integers(0, sizes[-1], (MODELS, SAMPLES))


def mean_loss(
    layers: list[Layer], model: int, x: NDArray[np.float64], y: NDArray[np.int64]
) -> float:
    """The loss by its definition, sample by sample."""
    total = 0.0
    for values, label in zip(x[model], y[model], strict=True):
        row = list(values)
        for number, (weight, bias) in enumerate(layers):
            row = [
                math.fsum(w * v for w, v in zip(weight[model, unit], row, strict=True))
                + bias[model, 0, unit]
                for unit in range(weight.shape[1])
            ]
            if number < len(layers) - 1:
                row = [max(value, 0.0) for value in row]
        total += math.log(math.fsum(math.exp(value) for value in row)) - row[label]
    return total / SAMPLES


@pytest.mark.parametrize("sizes", STACKS)
def test_a_step_goes_against_the_slope_of_the_loss(sizes: tuple[int, ...]) -> None:
    before, x, y = stack(sizes)
    after = [(weight.copy(), bias.copy()) for weight, bias in before]
    descend(after, x, y, RATE)
    step = 1e-5
    for tensor, moved in zip(
        (t for layer in before for t in layer), (t for layer in after for t in layer), strict=True
    ):
        original = tensor.copy()
        for place in np.ndindex(tensor.shape):
            losses = []
            for sign in (1, -1):
                tensor[place] = original[place] + sign * step
                losses.append(mean_loss(before, place[0], x, y))
            tensor[place] = original[place]
            slope = (losses[0] - losses[1]) / (2 * step)
            # Central differences miss by the third derivative times step^2, and by rounding / step.
            assert moved[place] - original[place] == pytest.approx(-RATE * slope, abs=1e-8)


def test_samples_and_models_stay_as_they_are_where_only_outputs_are_asked() -> None:
    layers, x, _ = stack(STACKS[-1])
    tensors: list[Values] = [x, *(tensor for layer in layers for tensor in layer)]
    copies = [tensor.copy() for tensor in tensors]
    values = forward(layers, x)
    assert [value.shape[2] for value in values] == list(STACKS[-1])
    assert values[0] is x
    for tensor, copy in zip(tensors, copies, strict=True):
        np.testing.assert_array_equal(tensor, copy)
