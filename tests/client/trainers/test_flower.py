"""A Flower client behind the adapter."""

import inspect

import numpy as np
import pytest

from client.errors import TrainingError
from client.trainer import Plan
from client.trainers import flower
from client.trainers.flower import Arrays, FlowerClientAdapter, Scalar
from tests.client.federation import make_tensors
from tests.peers import load

PLAN = Plan(local_epochs=2, batch_size=4, learning_rate=0.5, hyperparameters={"mu": 0.1}, round=3)


class HalvingClient:
    """What people write for Flower: halves every weight, in place and in float64."""

    def __init__(self, *, drop: int = 0) -> None:
        self.configs: list[dict[str, Scalar]] = []
        self.drop = drop

    def fit(
        self, parameters: Arrays, config: dict[str, Scalar]
    ) -> tuple[Arrays, int, dict[str, Scalar]]:
        self.configs.append(config)
        for array in parameters:
            np.divide(array, 2, out=array)
        arrays = [array.astype(np.float64) for array in parameters]
        return arrays[self.drop :], 21, {"note": "text"}

    def evaluate(
        self, parameters: Arrays, config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        del config
        loss = sum(float(np.abs(array).sum()) for array in parameters)
        return loss, 9, {"accuracy": 0.5, "note": "text"}


def never() -> bool:
    return False


def test_fit_trains_in_model_order() -> None:
    numpy_client = HalvingClient()
    before = make_tensors()
    for tensor in before.values():
        tensor.flags.writeable = False
    result = FlowerClientAdapter(numpy_client).train(before, PLAN, never)
    assert list(result.weights) == ["weight", "bias"]
    for name, tensor in make_tensors().items():
        np.testing.assert_array_equal(result.weights[name], tensor / 2)
        assert result.weights[name].dtype == np.float32
    assert result.num_samples == 21
    assert result.loss_before is None
    assert numpy_client.configs == [
        {"server_round": 3, "local_epochs": 2, "batch_size": 4, "learning_rate": 0.5, "mu": 0.1}
    ]


def test_losses_come_from_evaluate_when_asked() -> None:
    adapter = FlowerClientAdapter(HalvingClient(), report_losses=True)
    result = adapter.train(make_tensors(), PLAN, never)
    # |-1| + |-0.6| + |-0.2| + the mirror image, and the bias of 0.5.
    assert result.loss_before == pytest.approx(4.1)
    assert result.loss_after == pytest.approx(2.05)


def test_evaluate_keeps_the_numbers() -> None:
    evaluation = FlowerClientAdapter(HalvingClient()).evaluate(make_tensors())
    assert evaluation.num_samples == 9
    assert evaluation.metrics == {"accuracy": 0.5}


def test_a_missing_array_is_refused() -> None:
    with pytest.raises(TrainingError, match="1 arrays"):
        FlowerClientAdapter(HalvingClient(drop=1)).train(make_tensors(), PLAN, never)


def test_fit_does_not_start_after_the_round() -> None:
    numpy_client = HalvingClient()
    with pytest.raises(TrainingError, match="before fit"):
        FlowerClientAdapter(numpy_client).train(make_tensors(), PLAN, lambda: True)
    assert numpy_client.configs == []


@pytest.mark.peers
def test_a_client_of_flowers_own_class_trains() -> None:
    kind = type("FlowerClient", (HalvingClient, load("flwr.client").NumPyClient), {})
    adapter = FlowerClientAdapter(kind(), report_losses=True)
    result = adapter.train(make_tensors(), PLAN, never)
    assert result.num_samples == 21
    assert result.loss_after == pytest.approx(2.05)


def test_flower_itself_is_not_needed() -> None:
    assert "import flwr" not in inspect.getsource(flower)
    assert "from flwr" not in inspect.getsource(flower)
