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
async def until_finished(folder: Path) -> AsyncIterator[Cluster]:
    """Devices work while the block does harm; then they finish the task and all is counted."""
    loop = asyncio.get_running_loop()
    # Devices held in training must not take the threads of the others.
    loop.set_default_executor(ThreadPoolExecutor(2 * DEVICES))
    async with cluster(folder) as running:
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
    assert sorted(r for r, devices in acknowledged.items() if devices) == [
        *range(1, NUM_ROUNDS + 1)
    ]
    assert await running.audited_rounds() == [*range(1, NUM_ROUNDS + 1)]


async def hold_some(running: Cluster) -> int:
    """Bring a round to where some devices have their receipt and the others are held."""
    running.fleet.gate.shut(SOME)
    number = await running.reach("collecting")
    await running.fleet.acknowledgements(number, SOME)
    return number


@pytest.mark.parametrize("phase", ["selecting", "aggregating", "validating", "published"])
async def test_the_leader_dies_in(phase: str, tmp_path: Path) -> None:
    async with until_finished(tmp_path) as running:
        await running.kill_leader_in(phase)


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


async def test_the_store_dies_with_some_updates_acknowledged(tmp_path: Path) -> None:
    async with until_finished(tmp_path) as running:
        await hold_some(running)
        running.restart_store()
        running.fleet.gate.open()


async def test_the_store_dies_while_updates_arrive(tmp_path: Path) -> None:
    async with until_finished(tmp_path) as running:
        for _ in range(3):
            await running.fleet.uploads_begin(SOME)
            running.restart_store()
