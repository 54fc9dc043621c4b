"""The models of the simulated tasks, and how good one is.

Every model is a stack of dense layers with a rectifier between them. Weights carry the names that
torch gives a `Sequential` of `Linear` and `ReLU`, so that a model file loads into such a module.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from simulation.dense_layers import Layer, forward
from simulation.errors import SampleModelError

LAYER_SIZES: Final[dict[str, tuple[int, ...]]] = {
    "digits": (64, 64, 10),
    "fashion-mnist": (784, 128, 10),
    "mnist": (784, 128, 10),
}
_STREAM: Final = 2  # keeps these draws apart from other uses of the same seed
_EVALUATION_ROWS: Final = 4096  # rows per step; bounds the memory of the activations


@dataclass(frozen=True, slots=True, kw_only=True)
class TestScore:
    """How good a model is.

    Attributes:
        accuracy: share of samples whose largest output is the label, 0 to 1.
        loss: mean cross-entropy in nats; infinite for a model with non-finite outputs.
        num_samples: samples it was measured on.
    """

    accuracy: float
    loss: float
    num_samples: int


def initial_weights(dataset_name: str, seed: int) -> dict[str, NDArray[np.float32]]:
    """Draw a fresh model; the same for the same arguments on every machine.

    Weights and biases are uniform in +-1/sqrt(fan_in), which is what torch draws for dense
    layers.

    Raises:
        SampleModelError: if no model is known for the data set.

    References: He et al. (2015), arXiv:1502.01852, with gain 1/sqrt(3).
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, _STREAM])))
    weights: dict[str, NDArray[np.float32]] = {}
    sizes = _layer_sizes(dataset_name)
    for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        bound = fan_in**-0.5
        # Even positions: the rectifiers take the odd ones in the torch module.
        for name, shape in (("weight", (fan_out, fan_in)), ("bias", (fan_out,))):
            drawn = rng.uniform(-bound, bound, size=shape)
            weights[f"{2 * layer}.{name}"] = drawn.astype(np.float32)
    return weights


def evaluate(
    weights: Mapping[str, NDArray[np.float32]],
    x: NDArray[np.float32],
    y: NDArray[np.int64],
) -> TestScore:
    """Measure a model on labelled samples.

    Args:
        weights: the model, in layer order.
        x: (n, features), n >= 1.
        y: (n,) labels.

    Raises:
        SampleModelError: if the weights are no stack of dense layers that fits `x`.

    Guarantees:
        Equals what a torch module of these weights gives, up to float32 rounding. A sample with a
        non-finite output counts as wrong.

    Cost: O(n * parameters) time, O(4096 * widest layer) memory.
    """
    if len(x) == 0 or len(x) != len(y):
        message = f"cannot evaluate on {len(x)} samples with {len(y)} labels"
        raise SampleModelError(message)
    layers = layers_of(weights, x.shape[1])
    correct = 0
    total_loss = 0.0
    # A poisoned model may overflow; that is a bad score, not a failure of the measurement.
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(x), _EVALUATION_ROWS):
            labels = y[start : start + _EVALUATION_ROWS]
            outputs = forward(layers, x[None, start : start + _EVALUATION_ROWS])[-1][0]
            is_finite = np.isfinite(outputs).all(axis=1)
            correct += int(np.sum((outputs.argmax(axis=1) == labels) & is_finite))
            total_loss += _cross_entropy(outputs, labels) if is_finite.all() else np.inf
    return TestScore(accuracy=correct / len(x), loss=total_loss / len(x), num_samples=len(x))


def layers_of(weights: Mapping[str, NDArray[np.float32]], num_features: int) -> list[Layer]:
    """View weights as the layers of one model: a weight, (out, in), and a bias, (out,), in turn.

    Raises:
        SampleModelError: if the weights are no stack of dense layers of so many inputs.
    """
    tensors = list(weights.values())
    if not tensors or len(tensors) % 2:
        message = f"expected pairs of weight and bias, got {len(tensors)} tensors"
        raise SampleModelError(message)
    pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
    width = num_features
    for weight, bias in pairs:
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            message = (
                f"layer of shapes {weight.shape} and {bias.shape} does not take {width} inputs"
            )
            raise SampleModelError(message)
        width = len(bias)
    return [(weight[None], bias[None, None]) for weight, bias in pairs]


def _layer_sizes(dataset_name: str) -> tuple[int, ...]:
    sizes = LAYER_SIZES.get(dataset_name)
    if sizes is None:
        message = f"no model for data set {dataset_name!r}; there are {', '.join(LAYER_SIZES)}"
        raise SampleModelError(message)
    return sizes


def _cross_entropy(outputs: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    # Shifted by the row's maximum, so that no exponential overflows.
    shifted = (outputs - outputs.max(axis=1, keepdims=True)).astype(np.float64)
    normalizer = np.log(np.exp(shifted).sum(axis=1))
    return float(np.sum(normalizer - shifted[np.arange(len(labels)), labels]))
