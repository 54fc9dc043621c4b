"""Updates of models that were trained: random numbers compress otherwise."""

import functools
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from simulation.data import datasets

STEPS: Final = 5
BATCH: Final = 32
LEARNING_RATE: Final = 0.1

_SIDE: Final = 8  # of a digit's image


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RealUpdate:
    """What a device would send.

    Attributes:
        model: of which it is an update.
        delta: (d,), float32, trained minus received.
        layer_shapes: of the model's tensors, in order.
    """

    model: str
    delta: NDArray[np.float32]
    layer_shapes: tuple[tuple[int, ...], ...]

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Elements of each tensor."""
        return tuple(int(np.prod(shape)) for shape in self.layer_shapes)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the numbers as float32."""
        return 4 * len(self.delta)

    def tensors(self) -> list[NDArray[np.float32]]:
        """Give the update tensor by tensor."""
        ends = np.cumsum(self.layer_sizes)[:-1]
        parts = np.split(self.delta, ends)
        return [part.reshape(shape) for part, shape in zip(parts, self.layer_shapes, strict=True)]


def perceptron() -> nn.Module:
    """A classifier of digits with 167,178 parameters."""
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(_SIDE**2, 512), nn.ReLU()),
        *(nn.Linear(512, 256), nn.ReLU()),
        nn.Linear(256, 10),
    )


def convolutional() -> nn.Module:
    """The network of McMahan et al. (2017), 1,663,370 parameters, on digits of 28 x 28 pixels.

    References: arXiv:1602.05629, section 3.
    """
    return nn.Sequential(
        nn.Upsample(size=28, mode="bilinear"),
        *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        *(nn.Linear(3136, 512), nn.ReLU()),
        nn.Linear(512, 10),
    )


MODELS: Final = {"perceptron": perceptron, "convolutional": convolutional}


@functools.cache
def real_update(model: str, *, seed: int = 0) -> RealUpdate:
    """Train one of `MODELS` for some steps on digits; the same for the same seed."""
    digits = datasets.load("digits")
    images = torch.tensor(digits.x_train[: STEPS * BATCH]).reshape(-1, 1, _SIDE, _SIDE)
    labels = torch.tensor(digits.y_train[: STEPS * BATCH])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = MODELS[model]()
    before = nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    optimizer = torch.optim.SGD(module.parameters(), LEARNING_RATE)
    for start in range(0, STEPS * BATCH, BATCH):
        part = slice(start, start + BATCH)
        optimizer.zero_grad()
        functional.cross_entropy(module(images[part]), labels[part]).backward()  # type: ignore[no-untyped-call]  # torch's own stubs lack it
        optimizer.step()
    after = nn.utils.parameters_to_vector(module.parameters()).detach()
    return RealUpdate(
        model=model,
        delta=(after - before).numpy(),
        layer_shapes=tuple(tuple(parameter.shape) for parameter in module.parameters()),
    )
