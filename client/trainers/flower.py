"""Runs an unmodified Flower `NumPyClient` as a trainer; Flower itself is never imported."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from client.errors import TrainingError
from client.trainer import Evaluation, Plan, TrainingResult, Weights

# Flower leaves the dtype of arrays open, and so does this adapter.
Arrays = list[NDArray[Any]]
Scalar = bool | bytes | float | int | str


class NumPyClientLike(Protocol):
    """The part of `flwr.client.NumPyClient` that is used."""

    def fit(
        self, parameters: Arrays, config: dict[str, Scalar]
    ) -> tuple[Arrays, int, dict[str, Scalar]]:
        """Train from `parameters`; return the trained ones, the number of samples, metrics."""
        ...

    def evaluate(
        self, parameters: Arrays, config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Return loss, number of samples and metrics of `parameters`."""
        ...


class FlowerClientAdapter:
    """A `Trainer` around a `NumPyClient`.

    The client gets writable copies of the weights as a list in model order, and a config with
    `server_round`, `local_epochs`, `batch_size`, `learning_rate` and the plan's
    hyperparameters. `fit` cannot be interrupted: after the round's end its result is dropped.
    """

    def __init__(self, numpy_client: NumPyClientLike, *, report_losses: bool = False) -> None:
        """Wrap `numpy_client`.

        Args:
            numpy_client: any object with Flower's `fit` and `evaluate`.
            report_losses: also call `evaluate` before and after `fit` and report both losses.
        """
        self._client = numpy_client
        self._report_losses = report_losses

    def train(
        self, weights: Weights, plan: Plan, should_stop: Callable[[], bool]
    ) -> TrainingResult:
        """Run `fit`.

        Raises:
            TrainingError: if the round is over already, or the arrays do not fit the model.
        """
        if should_stop():
            raise TrainingError("the round ended before fit could start")
        loss_before = self._loss(weights)
        arrays, num_samples, _ = self._client.fit(_copies(weights), _config(plan))
        trained = _named(arrays, weights)
        return TrainingResult(
            weights=trained,
            num_samples=num_samples,
            loss_before=loss_before,
            loss_after=self._loss(trained),
        )

    def evaluate(self, weights: Weights) -> Evaluation:
        """Run the client's `evaluate`; of its metrics only the numbers are kept."""
        loss, num_samples, metrics = self._client.evaluate(_copies(weights), {})
        numbers = {
            name: float(value) for name, value in metrics.items() if isinstance(value, int | float)
        }
        return Evaluation(loss=float(loss), num_samples=num_samples, metrics=numbers)

    def _loss(self, weights: Weights) -> float | None:
        return self.evaluate(weights).loss if self._report_losses else None


def _copies(weights: Weights) -> Arrays:
    return [tensor.copy() for tensor in weights.values()]


def _config(plan: Plan) -> dict[str, Scalar]:
    return {
        **plan.hyperparameters,
        "server_round": plan.round,
        "local_epochs": plan.local_epochs,
        "batch_size": plan.batch_size,
        "learning_rate": plan.learning_rate,
    }


def _named(arrays: Arrays, weights: Weights) -> Mapping[str, NDArray[np.float32]]:
    if len(arrays) != len(weights):
        raise TrainingError(f"fit returned {len(arrays)} arrays, the model has {len(weights)}")
    return {
        name: np.asarray(array, dtype=np.float32)
        for name, array in zip(weights, arrays, strict=True)
    }
