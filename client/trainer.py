"""What the application brings: a trainer that turns received weights into trained ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from updates.compression_plan import CompressionPlan

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do on the device, as the server asks for it.

    Attributes:
        local_epochs: passes over the local data, from 1.
        batch_size: samples per optimizer step, from 1.
        learning_rate: step size of the local optimizer, > 0.
        clipping_norm: largest L2 norm of the update; 0: not clipped. The client applies it.
        hyperparameters: further numbers for the trainer, by name.
        round: number of the round within its task, from 1; 0 outside a round.
        compression: how the client compresses the update; None: it sends dense float32.
        device_noise_multiplier: standard deviation of the noise that the client adds to each
            number it sends, in units of `clipping_norm`; 0: none.
        reports_clipping: whether the client tells if the update was within `clipping_norm`.
    """

    local_epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 0.01
    clipping_norm: float = 0.0
    hyperparameters: Mapping[str, float] = field(default_factory=dict)
    round: int = 0
    compression: CompressionPlan | None = None
    device_noise_multiplier: float = 0.0
    reports_clipping: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What local training gave.

    Attributes:
        weights: the trained tensors, with the names and shapes of the received ones, float32.
        num_samples: training samples behind them, from 1.
        loss_before: mean loss over the local data before training; None: not measured.
        loss_after: the same after training.
    """

    weights: Weights
    num_samples: int
    loss_before: float | None = None
    loss_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Mean loss over `num_samples` local samples, and further numbers by name."""

    loss: float
    num_samples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class Trainer(Protocol):
    """Trains on the device's own data. Called in a worker thread, one call at a time."""

    def train(
        self, weights: Weights, plan: Plan, should_stop: Callable[[], bool]
    ) -> TrainingResult:
        """Train from `weights` and return the result.

        Args:
            weights: the model's tensors in model order, read-only.
            plan: epochs, batch size, step size.
            should_stop: cheap and thread-safe; once it is true the round can no longer be
                reached, or only by returning now. Ask it between steps.
        """
        ...


class Evaluator(Protocol):
    """A trainer that can also measure a model on local data without training."""

    def evaluate(self, weights: Weights) -> Evaluation:
        """Return the loss of `weights` (read-only) on the local data."""
        ...
