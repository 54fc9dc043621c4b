"""Devices trained together; `test_torch_agreement` compares a row with what torch gives."""

import numpy as np
import pytest

from simulation.data import datasets
from simulation.errors import PartitionError, ScenarioError
from simulation.experiments import batched_training
from simulation.experiments.batched_training import BatchedTraining, LocalSteps

SIZES = (6, 5, 4, 3)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 40)
SHARDS = [np.arange(start, start + 10) for start in range(0, 40, 10)]
HOW = LocalSteps(steps=3, batch_size=4, learning_rate=0.3)


def training(seed: int = 0) -> BatchedTraining:
    return BatchedTraining(SIZES, X, Y, SHARDS, seed)


def test_rows_do_not_depend_on_the_other_devices_and_the_model_stays() -> None:
    model = batched_training.initial_model(SIZES, 1)
    before = model.copy()
    together = training().updates(model, 7, np.array([0, 2, 3]), HOW)
    alone = training().updates(model, 7, np.array([2]), HOW)
    np.testing.assert_allclose(alone[0], together[1], atol=1e-6)
    np.testing.assert_array_equal(model, before)


def test_batches_depend_on_seed_round_and_device() -> None:
    fleet, other = training(), training(1)
    draws = [
        fleet._batches(1, 0, HOW),
        fleet._batches(2, 0, HOW),
        other._batches(1, 0, HOW),
        fleet._batches(1, 1, HOW) - 10,
    ]
    assert len({draw.tobytes() for draw in draws}) == 4
    np.testing.assert_array_equal(draws[0], training()._batches(1, 0, HOW))


def test_fresh_models_lie_within_their_bounds_and_differ_by_seed() -> None:
    model = batched_training.initial_model((4, 9), 0)
    assert np.abs(model).max() <= 0.5
    assert np.abs(model).max() > 0.4
    assert model.tolist() != batched_training.initial_model((4, 9), 1).tolist()
    assert model.tolist() == batched_training.initial_model((4, 9), 0).tolist()


def test_devices_know_few_classes_and_share_no_sample() -> None:
    labels = datasets.load("digits").y_train
    shards = batched_training.label_shards(labels, 50, 3)
    together = np.concatenate(shards)
    assert len(shards) == 50
    np.testing.assert_array_equal(np.sort(together), np.arange(len(labels)))
    # Two shards of 14 samples, each of one class or of two neighbours.
    assert max(len(np.unique(labels[shard])) for shard in shards) <= 4
    assert [s.tolist() for s in shards] == [
        s.tolist() for s in batched_training.label_shards(labels, 50, 3)
    ]
    assert [s.tolist() for s in shards] != [
        s.tolist() for s in batched_training.label_shards(labels, 50, 4)
    ]


@pytest.mark.parametrize("num_devices", [0, 6])
def test_too_many_devices_for_the_samples_are_refused(num_devices: int) -> None:
    with pytest.raises(PartitionError, match=rf"num_devices={num_devices} must be in 1\.\.5"):
        batched_training.label_shards(np.zeros(10, np.int64), num_devices, 0)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": np.inf}]
)
def test_steps_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ScenarioError, match="must have steps and batch_size from 1"):
        LocalSteps(**wrong)  # type: ignore[arg-type]  # of mixed types
