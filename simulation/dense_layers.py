"""Stacks of dense layers, many models at a time, in numpy: forward and one step of SGD.

A stack computes x, relu(x W' + b), ..., x W' + b; its loss is the mean cross-entropy of a batch.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
Values = NDArray[np.floating]
Layer = tuple[Values, Values]
"""Weights (m, out, in) and biases (m, 1, out) of m models."""


def forward(layers: Sequence[Layer], x: Values) -> list[Values]:
    """Compute the inputs of every layer and, last, the outputs.

    Args:
        layers: of m models, from the first to the last.
        x: (m, n, features), a batch for each model; of the layers' type.
    """
    values = [x]
    for number, (weight, bias) in enumerate(layers, start=1):
        outputs = values[-1] @ weight.transpose(0, 2, 1)
        outputs += bias
        values.append(np.maximum(outputs, 0, out=outputs) if number < len(layers) else outputs)
    return values


def descend(layers: Sequence[Layer], x: Values, y: Labels, rate: float) -> None:
    """Take one step of each model, in place, against the gradient of its mean cross-entropy.

    Args:
        layers: of m models; changed.
        x: (m, n, features), a batch for each model.
        y: (m, n), its labels.
        rate: step size.
    """
    values = forward(layers, x)
    slope = values.pop()
    slope -= slope.max(axis=2, keepdims=True)
    np.exp(slope, out=slope)
    slope /= slope.sum(axis=2, keepdims=True)
    num_models, num_samples = y.shape
    slope[np.arange(num_models)[:, None], np.arange(num_samples), y] -= 1
    slope *= rate / num_samples
    for layer, inputs in zip(reversed(layers), reversed(values), strict=True):
        weight, bias = layer
        # The slope below needs the weights from before the step.
        back = None if inputs is x else slope @ weight
        weight -= slope.transpose(0, 2, 1) @ inputs
        bias -= slope.sum(axis=1, keepdims=True)
        if back is not None:
            slope = np.multiply(back, inputs > 0, out=back)
