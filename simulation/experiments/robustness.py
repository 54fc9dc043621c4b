"""Federated training without a network: what a rule does to a scenario, round by round.

`python -m simulation.experiments.robustness` prints the table behind the defaults of `Scenario`.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators import AggregatorConfig, GradientAggregator, Update
from client import Plan
from simulation.data import datasets
from simulation.dense_trainer import DenseTrainer
from simulation.fleet.scenarios import Scenario, local_data, poisoned, trainer_seed
from simulation.models import TestScore, evaluate, initial_weights
from updates.vectors import flatten, layout_of, unflatten

Weights = Mapping[str, NDArray[np.float32]]

_NUM_ATTACKERS: Final = 4
_CLEAN: Final = Scenario()
_POISONED: Final = replace(_CLEAN, num_attackers=_NUM_ATTACKERS, attack="sign-flip")
_MEAN: Final = AggregatorConfig(rule="mean")
_MULTI_KRUM: Final = AggregatorConfig(rule="multi-krum", num_malicious_nodes=_NUM_ATTACKERS)
_TABLE: Final[tuple[tuple[str, AggregatorConfig, Scenario], ...]] = (
    ("mean, clean", _MEAN, _CLEAN),
    ("multi-krum, clean", _MULTI_KRUM, _CLEAN),
    ("multi-krum, sign-flip x1", _MULTI_KRUM, _POISONED),
    ("multi-krum, sign-flip x10", _MULTI_KRUM, replace(_POISONED, attack_scale=10.0)),
    ("mean, sign-flip x1", _MEAN, _POISONED),
    ("mean, sign-flip x10", _MEAN, replace(_POISONED, attack_scale=10.0)),
)


def simulate(
    scenario: Scenario, config: AggregatorConfig, data_dir: Path | None = None
) -> tuple[TestScore, ...]:
    """Train a scenario's model with every device in every round.

    Args:
        scenario: population, attack, training.
        config: how a round's updates become one.
        data_dir: as in `datasets.load`.

    Returns:
        The model's test score before the first round and after each; 1 + `num_rounds` entries.

    Raises:
        DatasetError, PartitionError: if the devices cannot be given their data.
        AggregationError: if the rule cannot combine so many updates.

    Guarantees:
        The same for the same arguments, with one thread and one build of numpy.
    """
    data = datasets.load(scenario.dataset, data_dir)
    aggregator = GradientAggregator(config)
    trainers = [_trainer(scenario, device, data_dir) for device in range(scenario.num_devices)]
    weights: Weights = initial_weights(scenario.dataset, scenario.seed)
    layout = layout_of(weights)
    scores = [evaluate(weights, data.x_test, data.y_test)]
    for number in range(1, scenario.num_rounds + 1):
        start = flatten(weights, layout)
        updates = [
            _update(scenario, device, trainer, weights, number)
            for device, trainer in enumerate(trainers)
        ]
        aggregate = aggregator.aggregate(updates).vector
        weights = unflatten((start + aggregate).astype(np.float32), layout)
        scores.append(evaluate(weights, data.x_test, data.y_test))
    return tuple(scores)


def plan_of(scenario: Scenario, round_number: int) -> Plan:
    """Return what a device of the scenario is asked to do in a round."""
    return Plan(
        local_epochs=scenario.local_epochs,
        batch_size=scenario.batch_size,
        learning_rate=scenario.learning_rate,
        round=round_number,
    )


def _trainer(scenario: Scenario, device: int, data_dir: Path | None) -> DenseTrainer:
    data = local_data(scenario, device, data_dir)
    return DenseTrainer(data.x, data.y, seed=trainer_seed(scenario, device))


def _update(
    scenario: Scenario, device: int, trainer: DenseTrainer, weights: Weights, number: int
) -> Update:
    result = trainer.train(weights, plan_of(scenario, number), lambda: False)
    layout = layout_of(weights)
    delta = flatten(result.weights, layout) - flatten(weights, layout)
    return Update(
        key=f"device-{device:04d}",
        vector=poisoned(scenario, device, number, delta),
        num_samples=result.num_samples,
    )


def table(seeds: range, write: Callable[[str], object]) -> None:
    """Write the final test accuracy of every row of the table, per seed and on average."""
    write(f"{'':28}" + "".join(f"seed {seed:<3}" for seed in seeds) + "mean\n")
    for name, config, scenario in _TABLE:
        final = [simulate(replace(scenario, seed=seed), config)[-1].accuracy for seed in seeds]
        write(f"{name:28}" + "".join(f"{score:<8.3f}" for score in [*final, fmean(final)]) + "\n")


if __name__ == "__main__":
    table(range(5), sys.stdout.write)
