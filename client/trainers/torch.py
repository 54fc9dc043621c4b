"""A trainer for PyTorch models: plain local SGD over data in memory. Needs the `torch` extra."""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

try:
    import torch
    from torch import Tensor, nn
except ModuleNotFoundError as error:
    message = "TorchTrainer needs torch: pip install 'fedagg[torch]'"
    raise ModuleNotFoundError(message, name=error.name) from error

from client.trainer import Evaluation, Plan, TrainingResult, Weights

LossFunction = Callable[[Tensor, Tensor], Tensor]

_EVALUATION_BATCH: Final = 1_024


class TorchTrainer:
    """Trains one model on one device's samples; the same seed gives the same batches.

    The floating-point entries of `state_dict` are exchanged, in its order, as float32; counters
    such as `num_batches_tracked` stay on the device. Not safe for concurrent calls: every
    device needs a model object of its own.
    """

    def __init__(
        self,
        model: nn.Module,
        features: Tensor,
        targets: Tensor,
        *,
        loss: LossFunction = nn.functional.cross_entropy,
        seed: int = 0,
    ) -> None:
        """Prepare the trainer.

        Args:
            model: module to train; its own weights are overwritten at every call.
            features: (num_samples, ...), on the model's device.
            targets: (num_samples, ...), as `loss` expects them.
            loss: mean loss of (predictions, targets).
            seed: together with the plan's round, decides the order of the samples.

        Raises:
            ValueError: if there are no samples, or not as many targets as features.
        """
        if len(features) == 0 or len(features) != len(targets):
            raise ValueError(f"{len(features)} features and {len(targets)} targets cannot train")
        self._model = model
        self._features = features
        self._targets = targets
        self._loss = loss
        self._seed = seed

    def train(
        self, weights: Weights, plan: Plan, should_stop: Callable[[], bool]
    ) -> TrainingResult:
        """Run the plan's epochs of SGD, or fewer steps when asked to stop.

        Raises:
            ValueError: if `weights` does not hold exactly the model's floating-point tensors.
        """
        load_weights(self._model, weights)
        loss_before = self._mean_loss()
        self._model.train()
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        for batch in self._batches(plan):
            if should_stop():
                break
            loss = self._loss(self._model(self._features[batch]), self._targets[batch])
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            # By hand: the first torch.optim object of a process loads torch's compiler, which takes
            # a device longer than its training.
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        parameter.sub_(gradient, alpha=plan.learning_rate)
        trained = model_weights(self._model)
        return TrainingResult(
            weights={name: trained[name] for name in weights},
            num_samples=len(self._features),
            loss_before=loss_before,
            loss_after=self._mean_loss(),
        )

    def evaluate(self, weights: Weights) -> Evaluation:
        """Return the mean loss of `weights` over the local samples."""
        load_weights(self._model, weights)
        return Evaluation(loss=self._mean_loss(), num_samples=len(self._features))

    def _batches(self, plan: Plan) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(_mixed_seed(self._seed, plan.round))
        for _ in range(plan.local_epochs):
            order = torch.randperm(len(self._features), generator=generator)
            for start in range(0, len(order), plan.batch_size):
                yield order[start : start + plan.batch_size]

    def _mean_loss(self) -> float:
        self._model.eval()
        total = 0.0
        with torch.no_grad():
            for start in range(0, len(self._features), _EVALUATION_BATCH):
                rows = slice(start, start + _EVALUATION_BATCH)
                targets = self._targets[rows]
                total += float(self._loss(self._model(self._features[rows]), targets)) * len(
                    targets
                )
        return total / len(self._features)


def model_weights(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Return copies of the model's floating-point tensors in the order of `state_dict`."""
    return {
        name: tensor.detach().cpu().to(torch.float32).numpy().copy()
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Overwrite the model's floating-point tensors.

    Raises:
        ValueError: if `weights` has other names or shapes than the model.
    """
    own = {
        name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()
    }
    if own.keys() != weights.keys():
        raise ValueError(f"tensors that do not match: {sorted(own.keys() ^ weights.keys())}")
    with torch.no_grad():
        for name, tensor in own.items():
            if tuple(tensor.shape) != weights[name].shape:
                raise ValueError(
                    f"{name} has shape {weights[name].shape}, expected {tuple(tensor.shape)}"
                )
            # torch.tensor copies, which the read-only arrays of a received model need.
            tensor.copy_(torch.tensor(weights[name]))


def _mixed_seed(seed: int, round_number: int) -> int:
    return int(np.random.SeedSequence([seed, round_number]).generate_state(1)[0])
