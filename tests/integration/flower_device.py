"""A device around an unmodified Flower client, run by the interpreter that has Flower.

`python -m tests.integration.flower_device ADDRESS TASK DEVICE TARGET NUM_SAMPLES` trains until the
task is finished and prints the rounds that the Flower client saw, as JSON.
"""

import asyncio
import json
import sys

import numpy as np
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar

from client import ClientConfig, FlowerClientAdapter, MobileClient


class MovingClient(NumPyClient):  # type: ignore[misc]  # Flower is Any where it is not installed
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


async def _run(config: ClientConfig, flower_client: MovingClient) -> int:
    trainer = FlowerClientAdapter(flower_client, report_losses=True)
    async with MobileClient(config, trainer) as client:
        return await client.run()


def main(address: str, task: str, device: str, target: str, num_samples: str) -> None:
    """Take part until there are no more rounds."""
    config = ClientConfig(servers=(address,), task=task, device_id=device, insecure=True)
    flower_client = MovingClient(float(target), int(num_samples))
    completed = asyncio.run(_run(config, flower_client))
    sys.stdout.write(json.dumps({"completed": completed, "rounds": flower_client.rounds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
