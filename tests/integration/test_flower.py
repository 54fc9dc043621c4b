"""An unmodified Flower client takes part in rounds of a real coordinator."""

import asyncio
import warnings
from pathlib import Path

import numpy as np

from client import ClientConfig, FlowerClientAdapter, MobileClient
from tests.integration.service import TASK, serving
from updates.vectors import decode_model

with warnings.catch_warnings():
    # Flower's own dependencies warn about each other while they are imported.
    warnings.simplefilter("ignore")
    from flwr.client import NumPyClient
    from flwr.common import NDArrays, Scalar


class MovingClient(NumPyClient):
    """Written for Flower: moves every weight half way to a target."""

    def __init__(self, target: float, num_samples: int) -> None:
        self._target = target
        self._num_samples = num_samples
        self.rounds: list[Scalar] = []

    def get_parameters(self, config: dict[str, Scalar]) -> NDArrays:
        raise NotImplementedError  # the server has the first model

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        self.rounds.append(config["server_round"])
        moved = [array + (self._target - array) / 2 for array in parameters]
        return moved, self._num_samples, {}

    def evaluate(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        del config
        loss = float(np.mean([np.abs(array - self._target).mean() for array in parameters]))
        return loss, self._num_samples, {}


async def test_flower_clients_complete_rounds(tmp_path: Path, redis_url: str) -> None:
    clients = {"d1": MovingClient(4.0, 10), "d2": MovingClient(8.0, 30)}
    async with serving(tmp_path, redis_url, task={"num-rounds": 2}) as service:

        async def run(device: str) -> int:
            config = ClientConfig(
                servers=(service.address,), task=TASK, device_id=device, insecure=True
            )
            trainer = FlowerClientAdapter(clients[device], report_losses=True)
            async with MobileClient(config, trainer) as client:
                return await client.run()

        assert await asyncio.gather(*map(run, clients)) == [2, 2]
        assert [client.rounds for client in clients.values()] == [[1, 2], [1, 2]]
        # The weighted target is 7; half the way in each round: 0, 3.5, 5.25. Exact in binary.
        weights, _ = decode_model(await service.fetch())
        for tensor in weights.values():
            np.testing.assert_array_equal(tensor, np.float32(5.25))
        versions = await service.get(f"/api/v1/tasks/{TASK}/models")
        assert [model["version"] for model in versions] == [3, 2, 1]
        # Losses at 3.5: (0.5 * 10 + 4.5 * 30) / 40 before the second round.
        assert versions[0]["metrics"]["loss_before"] == 3.5
