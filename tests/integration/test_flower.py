"""Unmodified Flower clients take part in rounds of a real coordinator."""

import asyncio
import json
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.harness.processes import PEERS_PYTHON, ROOT
from tests.integration.service import TASK, serving
from updates.vectors import decode_model

pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.skipif(not PEERS_PYTHON.exists(), reason="flwr is not installed: make peers"),
]


async def run_device(address: str, device: str, target: float, num_samples: int) -> dict[str, Any]:
    """Run a device to its end, in a process that has Flower."""
    module = ("-m", "tests.integration.flower_device")
    arguments = (address, TASK, device, str(target), str(num_samples))
    process = await asyncio.create_subprocess_exec(
        PEERS_PYTHON, *module, *arguments, cwd=ROOT, stdout=PIPE
    )
    output, _ = await process.communicate()
    answer: dict[str, Any] = json.loads(output)
    return answer


async def test_flower_clients_complete_rounds(tmp_path: Path, redis_url: str) -> None:
    async with serving(tmp_path, redis_url, task={"num-rounds": 2}) as service:
        devices = (("d1", 4.0, 10), ("d2", 8.0, 30))
        answers = await asyncio.gather(*(run_device(service.address, *one) for one in devices))
        assert answers == [{"completed": 2, "rounds": [1, 2]}] * 2
        # The weighted target is 7; half the way in each round: 0, 3.5, 5.25. Exact in binary.
        weights, _ = decode_model(await service.fetch())
        for tensor in weights.values():
            np.testing.assert_array_equal(tensor, np.float32(5.25))
        versions = await service.get(f"/api/v1/tasks/{TASK}/models")
        assert [model["version"] for model in versions] == [3, 2, 1]
        # Losses at 3.5: (0.5 * 10 + 4.5 * 30) / 40 before the second round.
        assert versions[0]["metrics"]["loss_before"] == 3.5
