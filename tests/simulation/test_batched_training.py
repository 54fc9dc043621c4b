"""The batched arithmetic against torch, one device at a time."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from simulation import batched_training, datasets
from simulation.batched_training import BatchedTraining, Floats, Labels, LocalSteps
from simulation.errors import PartitionError, ScenarioError

SIZES = (6, 5, 4, 3)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 40)
SHARDS = [np.arange(start, start + 10) for start in range(0, 40, 10)]
HOW = LocalSteps(steps=3, batch_size=4, learning_rate=0.3)


def training(seed: int = 0) -> BatchedTraining:
    return BatchedTraining(SIZES, X, Y, SHARDS, seed)


def module_of(model: Floats) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(SIZES):
        layers += [nn.Linear(a, b), nn.ReLU()]
    module = nn.Sequential(*layers[:-1])
    nn.utils.vector_to_parameters(torch.from_numpy(model.copy()), module.parameters())
    return module


def vector_of(module: nn.Module) -> Floats:
    with torch.no_grad():
        vector: Floats = nn.utils.parameters_to_vector(module.parameters()).numpy().copy()
    return vector


def by_torch(model: Floats, batches: Labels) -> Floats:
    module = module_of(model)
    for batch in batches:
        outputs = module(torch.from_numpy(X[batch]))
        loss = nn.functional.cross_entropy(outputs, torch.from_numpy(Y[batch]))
        parameters = list(module.parameters())
        # Not torch's optimizer, whose first use takes seconds.
        for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data -= HOW.learning_rate * slope
    return vector_of(module) - model


def test_each_row_is_ordinary_sgd_on_the_devices_own_batches() -> None:
    model = batched_training.initial_model(SIZES, 1)
    fleet = training()
    devices = np.array([0, 2, 3])
    updates = fleet.updates(model, 7, devices, HOW)
    assert updates.shape == (3, batched_training.dimension(SIZES))
    assert updates.dtype == np.float32
    for row, device in zip(updates, devices, strict=True):
        batches = fleet._batches(7, int(device), HOW)
        assert batches.shape == (3, 4)
        assert np.isin(batches, SHARDS[device]).all()
        # Three steps of float32 on numbers of about 1.
        np.testing.assert_allclose(row, by_torch(model, batches), atol=3e-6)


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


def test_accuracy_is_the_share_of_right_answers() -> None:
    model = batched_training.initial_model(SIZES, 1)
    with torch.no_grad():
        answers = module_of(model)(torch.from_numpy(X)).argmax(dim=1).numpy()
    assert batched_training.accuracy(model, SIZES, X, answers) == 1.0
    expected = float(np.mean(answers == Y))
    assert batched_training.accuracy(model, SIZES, X, Y) == pytest.approx(expected)


def test_layer_sizes_are_those_of_the_torch_module() -> None:
    module = module_of(batched_training.initial_model(SIZES, 0))
    sizes = tuple(parameter.numel() for parameter in module.parameters())
    assert batched_training.layer_sizes(SIZES) == sizes
    assert batched_training.dimension(SIZES) == sum(sizes)


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
