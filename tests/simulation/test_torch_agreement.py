"""What the simulation computes in numpy against torch; skipped where torch is not installed."""

import numpy as np
import pytest

from client import Plan, Weights
from simulation.dense_layers import Floats, Labels
from simulation.dense_trainer import DenseTrainer
from simulation.experiments import batched_training
from simulation.experiments.batched_training import BatchedTraining, LocalSteps
from simulation.models import LAYER_SIZES, evaluate, initial_weights

torch = pytest.importorskip("torch")
modules = pytest.importorskip("tests.simulation.torch_modules")

SIZES = (6, 5, 4, 3)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 40)


def weights_of(model: Floats) -> Weights:
    """Name the parts of a flat model as torch does."""
    weights, place = {}, 0
    for name, tensor in modules.module_of(SIZES).state_dict().items():
        weights[name] = model[place : place + tensor.numel()].reshape(tuple(tensor.shape)).copy()
        place += tensor.numel()
    return weights


def by_torch(weights: Weights, batches: list[Labels], rate: float) -> dict[str, Floats]:
    """Take a step of SGD for each batch."""
    module = modules.module_of(SIZES, weights)
    for batch in batches:
        outputs = module(torch.from_numpy(X[batch]))
        loss = torch.nn.functional.cross_entropy(outputs, torch.from_numpy(Y[batch]))
        parameters = list(module.parameters())
        # Not torch's optimizer, whose first use takes seconds.
        for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data -= rate * slope
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", LAYER_SIZES)
def test_scores_are_those_of_torch(name: str) -> None:
    weights = initial_weights(name, 7)
    rng = np.random.default_rng(1)
    # More rows than one step takes, and not a multiple of it.
    x = rng.random((4100, LAYER_SIZES[name][0]), dtype=np.float32)
    y = rng.integers(0, 10, 4100)
    module = modules.module_of(LAYER_SIZES[name], weights).double()
    with torch.no_grad():
        outputs = module(torch.tensor(x, dtype=torch.float64))
    targets = torch.tensor(y)
    ours = evaluate(weights, x, y)
    # float32 sums of up to 784 terms against float64: relative error below 784 * 2^-24.
    loss = float(torch.nn.functional.cross_entropy(outputs, targets))
    assert ours.loss == pytest.approx(loss, rel=5e-5)
    accuracy = float((outputs.argmax(1) == targets).double().mean())
    assert ours.accuracy == pytest.approx(accuracy, abs=1 / 4100)
    assert ours.num_samples == 4100


@pytest.mark.parametrize("name", LAYER_SIZES)
def test_weights_have_the_names_and_order_of_the_torch_module(name: str) -> None:
    state = modules.module_of(LAYER_SIZES[name]).state_dict()
    weights = initial_weights(name, 0)
    assert list(weights) == list(state)
    assert [w.shape for w in weights.values()] == [tuple(t.shape) for t in state.values()]
    assert all(w.dtype == np.float32 for w in weights.values())


def test_a_device_trains_as_torch_does() -> None:
    weights = weights_of(batched_training.initial_model(SIZES, 2))
    trainer = DenseTrainer(X, Y, seed=9)
    plan = Plan(local_epochs=3, batch_size=8, learning_rate=0.3, round=2)
    trained = trainer.train(weights, plan, lambda: False).weights
    expected = by_torch(weights, list(trainer._batches(plan)), plan.learning_rate)
    for name, tensor in trained.items():
        # Fifteen steps of float32 on numbers of about 1.
        np.testing.assert_allclose(tensor, expected[name], atol=1e-5)


def test_each_row_is_ordinary_sgd_on_the_devices_own_batches() -> None:
    model = batched_training.initial_model(SIZES, 1)
    shards = [np.arange(start, start + 10) for start in range(0, 40, 10)]
    fleet = BatchedTraining(SIZES, X, Y, shards, 0)
    how = LocalSteps(steps=3, batch_size=4, learning_rate=0.3)
    devices = np.array([0, 2, 3])
    updates = fleet.updates(model, 7, devices, how)
    assert updates.shape == (3, batched_training.dimension(SIZES))
    assert updates.dtype == np.float32
    for row, device in zip(updates, devices, strict=True):
        batches = fleet._batches(7, int(device), how)
        assert batches.shape == (3, 4)
        assert np.isin(batches, shards[device]).all()
        trained = by_torch(weights_of(model), list(batches), 0.3)
        expected = np.concatenate([tensor.reshape(-1) for tensor in trained.values()]) - model
        # Three steps of float32 on numbers of about 1.
        np.testing.assert_allclose(row, expected, atol=3e-6)


def test_accuracy_and_sizes_of_a_flat_model_are_those_of_the_module() -> None:
    model = batched_training.initial_model(SIZES, 1)
    module = modules.module_of(SIZES, weights_of(model))
    with torch.no_grad():
        answers = module(torch.from_numpy(X)).argmax(dim=1).numpy()
    assert batched_training.accuracy(model, SIZES, X, answers) == 1.0
    expected = float(np.mean(answers == Y))
    assert batched_training.accuracy(model, SIZES, X, Y) == pytest.approx(expected)
    sizes = tuple(parameter.numel() for parameter in module.parameters())
    assert batched_training.layer_sizes(SIZES) == sizes
    assert batched_training.dimension(SIZES) == sum(sizes)
