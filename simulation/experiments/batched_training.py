"""Many devices trained at once, in numpy: what long experiments on small models need.

All devices of a round start from one model and take the same number of steps on batches of one
size, so that each step is a few products of stacks of matrices.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from simulation.dense_layers import Floats, Labels, Layer, descend, forward
from simulation.errors import PartitionError, ScenarioError

# Keep these draws apart from each other and from other uses of the same seed.
_SHARD_STREAM: Final = 5
_MODEL_STREAM: Final = 6
_BATCH_STREAM: Final = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSteps:
    """What every device does in a round.

    Attributes:
        steps: steps of SGD, from 1.
        batch_size: samples of a step, drawn from the device's own with replacement, from 1.
        learning_rate: step size, > 0.
    """

    steps: int = 5
    batch_size: int = 20
    learning_rate: float = 0.5

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or not 0 < self.learning_rate < float("inf"):
            message = f"{self} must have steps and batch_size from 1 and a learning_rate above 0"
            raise ScenarioError(message)


def label_shards(labels: Labels, num_devices: int, seed: int) -> list[Labels]:
    """Give every device two random shards of the samples, sorted by label: it knows few classes.

    Args:
        labels: (n,) labels.
        num_devices: devices to serve, 1 to n / 2.
        seed: root of the draw, from 0.

    Returns:
        One array of sample positions for each device; disjoint, together all positions.

    Raises:
        PartitionError: if there are fewer than two samples for each device.

    References: McMahan et al. (2017), arXiv:1602.05629, section 3.
    """
    if not 1 <= num_devices <= len(labels) // 2:
        message = f"num_devices={num_devices} must be in 1..{len(labels) // 2}"
        raise PartitionError(message)
    shards = np.array_split(np.argsort(labels, kind="stable"), 2 * num_devices)
    order = _generator(seed, _SHARD_STREAM).permutation(2 * num_devices)
    return [np.concatenate((shards[a], shards[b])) for a, b in order.reshape(-1, 2)]


def dimension(sizes: tuple[int, ...]) -> int:
    """Count the parameters of dense layers of these widths."""
    return sum(layer_sizes(sizes))


def layer_sizes(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Count the elements of each tensor: weight and bias of each layer, in order."""
    return tuple(n for a, b in pairwise(sizes) for n in (a * b, b))


def initial_model(sizes: tuple[int, ...], seed: int) -> Floats:
    """Draw a fresh model, uniform in +-1/sqrt(fan_in), as one vector."""
    rng = _generator(seed, _MODEL_STREAM)
    parts = [
        rng.uniform(-(a**-0.5), a**-0.5, size=count)
        for a, b in pairwise(sizes)
        for count in (a * b, b)
    ]
    return np.concatenate(parts).astype(np.float32)


def accuracy(model: Floats, sizes: tuple[int, ...], x: Floats, y: Labels) -> float:
    """Measure the share of samples whose largest output is the label."""
    outputs = forward(list(_layers(model[None], sizes)), x[None])[-1][0]
    return float(np.mean(outputs.argmax(axis=1) == y))


class BatchedTraining:
    """The devices of an experiment with their data."""

    def __init__(
        self, sizes: tuple[int, ...], x: Floats, y: Labels, shards: list[Labels], seed: int
    ) -> None:
        """Keep the data.

        Args:
            sizes: widths of the model's layers, from the features to the classes.
            x: (n, features) samples.
            y: (n,) labels.
            shards: positions of each device's samples.
            seed: root of the draws of batches.
        """
        self._sizes = sizes
        self._x, self._y = x, y
        self._shards = shards
        self._seed = seed

    def updates(self, model: Floats, round_number: int, devices: Labels, how: LocalSteps) -> Floats:
        """Train some devices from one model.

        Args:
            model: (d,), what they start from. Not modified.
            round_number: decides the batches, together with the seed and the device.
            devices: (m,) numbers of devices.
            how: steps, batches, step size.

        Returns:
            (m, d): trained minus received weights.

        Guarantees:
            Row i is what ordinary SGD on the mean cross-entropy gives device i, up to rounding.
            It does not depend on the other devices.
        """
        models = np.repeat(model[None], len(devices), axis=0)
        chosen = np.array([self._batches(round_number, int(i), how) for i in devices])
        layers = list(_layers(models, self._sizes))
        for step in range(how.steps):
            batch = chosen[:, step]
            descend(layers, self._x[batch], self._y[batch], how.learning_rate)
        models -= model
        return models

    def _batches(self, round_number: int, device: int, how: LocalSteps) -> Labels:
        rng = _generator(self._seed, _BATCH_STREAM, round_number, device)
        own = self._shards[device]
        return own[rng.integers(len(own), size=(how.steps, how.batch_size))]


def _generator(*numbers: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(numbers))))


def _layers(models: Floats, sizes: tuple[int, ...]) -> Iterator[Layer]:
    """Return views of each layer's weights (m, out, in) and biases (m, 1, out)."""
    place = 0
    for a, b in pairwise(sizes):
        weight = models[:, place : place + a * b].reshape(-1, b, a)
        place += a * b
        yield weight, models[:, None, place : place + b]
        place += b
