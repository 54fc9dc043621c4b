"""Local SGD on a toy problem."""

import numpy as np
import pytest
import torch
from torch import nn

from client.trainer import Plan, Weights
from client.trainers.torch import TorchTrainer, load_weights, model_weights

PLAN = Plan(local_epochs=3, batch_size=8, learning_rate=0.2, round=1)


def never() -> bool:
    return False


def toy_trainer(seed: int = 0) -> TorchTrainer:
    generator = torch.Generator().manual_seed(11)
    features = torch.randn(60, 4, generator=generator)
    targets = (features[:, 0] > 0).long()
    return TorchTrainer(nn.Linear(4, 2), features, targets, seed=seed)


def start() -> Weights:
    rng = np.random.default_rng(0)
    weights = {
        "weight": rng.normal(size=(2, 4)).astype(np.float32),
        "bias": np.zeros(2, dtype=np.float32),
    }
    for tensor in weights.values():
        tensor.flags.writeable = False
    return weights


def test_training_lowers_the_loss() -> None:
    result = toy_trainer().train(start(), PLAN, never)
    assert result.num_samples == 60
    assert result.loss_before is not None
    assert result.loss_after is not None
    assert result.loss_after < 0.8 * result.loss_before
    # An independent look at the weights returned.
    assert toy_trainer().evaluate(result.weights).loss == pytest.approx(result.loss_after)


def test_one_full_batch_step_is_gradient_descent() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(10, 4)), rng.normal(size=(10, 2))
    weights = start()
    trainer = TorchTrainer(
        nn.Linear(4, 2),
        torch.tensor(x, dtype=torch.float32),
        torch.tensor(y, dtype=torch.float32),
        loss=nn.functional.mse_loss,
    )
    plan = Plan(local_epochs=1, batch_size=10, learning_rate=0.1)
    result = trainer.train(weights, plan, never)
    residual = x @ weights["weight"].T + weights["bias"] - y
    # d/dW of the mean over all 20 squared residuals; float32 against float64.
    expected = weights["weight"] - 0.1 * 2 / 20 * residual.T @ x
    np.testing.assert_allclose(result.weights["weight"], expected, rtol=1e-5, atol=1e-6)


def test_the_same_seed_and_round_give_the_same_weights() -> None:
    first = toy_trainer().train(start(), PLAN, never).weights
    second = toy_trainer().train(start(), PLAN, never).weights
    other_seed = toy_trainer(seed=1).train(start(), PLAN, never).weights
    other_round = toy_trainer().train(
        start(), Plan(local_epochs=3, batch_size=8, learning_rate=0.2, round=2), never
    )
    assert first["weight"].tobytes() == second["weight"].tobytes()
    assert first["weight"].tobytes() != other_seed["weight"].tobytes()
    assert first["weight"].tobytes() != other_round.weights["weight"].tobytes()


def test_weights_come_back_in_the_order_received() -> None:
    result = toy_trainer().train(dict(reversed(list(start().items()))), PLAN, never)
    assert list(result.weights) == ["bias", "weight"]


def test_a_stop_ends_training_between_steps() -> None:
    asked = 0

    def stop_at_the_third() -> bool:
        nonlocal asked
        asked += 1
        return asked >= 3

    plan = Plan(local_epochs=100, batch_size=1, learning_rate=0.1)
    toy_trainer().train(start(), plan, stop_at_the_third)
    assert asked == 3


def test_counters_of_the_model_stay_on_the_device() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    weights = model_weights(model)
    assert "1.running_mean" in weights
    assert "1.num_batches_tracked" not in weights
    trainer = TorchTrainer(model, torch.ones(6, 4), torch.zeros(6, dtype=torch.long))
    assert list(trainer.train(weights, PLAN, never).weights) == list(weights)


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="extra"):
        load_weights(nn.Linear(4, 2), {**start(), "extra": np.zeros(1, dtype=np.float32)})
    with pytest.raises(ValueError, match="shape"):
        load_weights(nn.Linear(2, 2), start())


def test_a_device_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="0 features"):
        TorchTrainer(nn.Linear(4, 2), torch.zeros(0, 4), torch.zeros(0))
