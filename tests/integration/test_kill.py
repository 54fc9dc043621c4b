"""Whatever process is killed, and whenever: acknowledged updates count exactly once."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.integration.fleet import DEVICES
from tests.integration.processes import MAX_ROUNDS, NUM_ROUNDS, Cluster, cluster

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(180)]

FINISH_S = 120.0
TOLERANCE = 1e-5  # float32 of 1/n, where n <= 8
SOME = 3  # fewer than a round needs


@asynccontextmanager
async def until_finished(folder: Path, *, num_rounds: int = NUM_ROUNDS) -> AsyncIterator[Cluster]:
    """Devices work while the block does harm; then they finish the task and all is counted."""
    loop = asyncio.get_running_loop()
    # Devices held in training must not take the threads of the others.
    loop.set_default_executor(ThreadPoolExecutor(2 * DEVICES))
    async with cluster(folder, num_rounds=num_rounds) as running:
        devices = asyncio.create_task(running.fleet.run())
        try:
            yield running
            async with asyncio.timeout(FINISH_S):
                await devices
            await running.reach("published")
            await check(running)
        finally:
            running.fleet.gate.open()
            devices.cancel()
            await asyncio.gather(devices, return_exceptions=True)


async def check(running: Cluster) -> None:
    """The model holds what was acknowledged, each once, and nothing else."""
    acknowledged = running.fleet.acknowledged
    expected = np.zeros((MAX_ROUNDS, DEVICES))
    for round_, devices in acknowledged.items():
        for device in devices:
            expected[round_ - 1, device] = 1 / len(devices)
    counted = await running.published()
    np.testing.assert_allclose(counted, expected, rtol=0, atol=TOLERANCE)
    rounds = [*range(1, running.num_rounds + 1)]
    assert sorted(r for r, devices in acknowledged.items() if devices) == rounds
    assert await running.audited_rounds() == rounds


async def hold_some(running: Cluster) -> int:
    """Bring a round to where some devices have their receipt and the others are held."""
    running.fleet.gate.shut(SOME)
    number = await running.reach("collecting")
    await running.fleet.acknowledgements(number, SOME)
    return number


async def test_the_leader_dies_in_each_phase(tmp_path: Path) -> None:
    async with until_finished(tmp_path, num_rounds=12) as running:
        for phase in ("selecting", "aggregating", "validating", "published"):
            await running.kill_leader_in(phase)
            # The rounds wait until there are two coordinators again.
            running.fleet.gate.shut(0)
            await running.start_workers()
            running.fleet.gate.open()


async def test_the_leader_dies_with_some_updates_acknowledged(tmp_path: Path) -> None:
    async with until_finished(tmp_path) as running:
        await hold_some(running)
        (await running.leader()).kill()
        running.fleet.gate.open()


async def test_both_coordinators_die_with_some_updates_acknowledged(tmp_path: Path) -> None:
    async with until_finished(tmp_path) as running:
        await hold_some(running)
        for worker in running.workers:
            worker.kill()
        running.fleet.gate.open()
        await running.start_workers()


async def test_the_store_dies_with_some_updates_acknowledged_and_while_others_arrive(
    tmp_path: Path,
) -> None:
    async with until_finished(tmp_path) as running:
        await hold_some(running)
        running.restart_store()
        running.fleet.gate.open()
        for _ in range(2):
            await running.fleet.uploads_begin(SOME)
            running.restart_store()
