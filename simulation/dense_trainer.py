"""A trainer for stacks of dense layers, in numpy: plain local SGD over data in memory."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from client import Evaluation, Plan, TrainingResult, Weights
from simulation.dense_layers import Floats, Labels, descend
from simulation.errors import SampleModelError
from simulation.models import evaluate, layers_of


class DenseTrainer:
    """Trains one device's model on its samples; a `client.Trainer`.

    Plain SGD on the mean cross-entropy of shuffled batches. It keeps nothing between calls. Where
    training diverges it returns what comes out, infinities included.
    """

    def __init__(self, features: Floats, labels: Labels, *, seed: int = 0) -> None:
        """Keep the samples.

        Args:
            features: (n, features), float32. Not modified.
            labels: (n,), int64.
            seed: together with the plan's round, decides the order of the samples.

        Raises:
            SampleModelError: if there are no samples, or not as many labels as features.
        """
        if len(features) == 0 or len(features) != len(labels):
            message = f"{len(features)} features and {len(labels)} labels cannot train"
            raise SampleModelError(message)
        self._features = features
        self._labels = labels
        self._seed = seed

    def train(
        self, weights: Weights, plan: Plan, should_stop: Callable[[], bool]
    ) -> TrainingResult:
        """Run the plan's epochs, or fewer steps when asked to stop.

        Raises:
            SampleModelError: if `weights` are no stack of dense layers for the samples.

        Guarantees:
            Each step is that of ordinary SGD, up to rounding. The same for the same arguments.
        """
        trained = {name: tensor.copy() for name, tensor in weights.items()}
        layers = layers_of(trained, self._features.shape[1])
        with np.errstate(over="ignore", invalid="ignore"):
            for batch in self._batches(plan):
                if should_stop():
                    break
                features, labels = self._features[batch], self._labels[batch]
                descend(layers, features[None], labels[None], plan.learning_rate)
        return TrainingResult(
            weights=trained,
            num_samples=len(self._features),
            loss_before=self.evaluate(weights).loss,
            loss_after=self.evaluate(trained).loss,
        )

    def evaluate(self, weights: Weights) -> Evaluation:
        """Return the mean loss of `weights` over the local samples."""
        score = evaluate(weights, self._features, self._labels)
        return Evaluation(loss=score.loss, num_samples=score.num_samples)

    def _batches(self, plan: Plan) -> Iterator[NDArray[np.int64]]:
        seeds = np.random.SeedSequence([self._seed, plan.round])
        rng = np.random.Generator(np.random.Philox(seeds))
        for _ in range(plan.local_epochs):
            order = rng.permutation(len(self._features))
            for start in range(0, len(order), plan.batch_size):
                yield order[start : start + plan.batch_size]
