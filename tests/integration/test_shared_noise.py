"""Rounds into whose sums the share holders put noise: coordinators by hand, real holders.

The same dealers' noise is in the sum whoever leads, and whoever dies once the set is frozen.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from privacy.budget import Budget
from privacy.charge import Charge
from server.privacy.private_task import PrivateTask
from server.processes.thread_pool import Workers
from server.round.state import Phase
from tests.integration.shared_bench import DEVICES, LEASE_MS, Bench, Process, bench_of
from tests.integration.shared_committee import mean_of, update_of

pytestmark = pytest.mark.slow

DIM: Final = 4096
MULTIPLIER: Final = 2.0
EXPECTED_UPDATES: Final = 5.0  # what the sum is divided by, though four updates come
MAX_TICKS: Final = 6


@pytest.fixture
def private() -> Iterator[PrivateTask]:
    workers = Workers("accountant", threads=1)
    yield PrivateTask(
        charge=Charge(noise_multiplier=MULTIPLIER),
        noise="holders",
        sensitivity=1.0,
        expected_updates=EXPECTED_UPDATES,
        clipping_norm=1.0,
        adapts=False,
        budget=Budget(epsilon=1000.0, delta=1e-5),
        workers=workers,
    )
    workers.close()


async def noise_of(bench: Bench) -> np.ndarray:
    """What was published besides the mean, in units of 2^-f of the sum."""
    snapshot = await bench.store.snapshot("digits")
    assert snapshot.current_version == 2, snapshot.round
    exact = len(DEVICES) * mean_of({name: update_of(name, DIM) for name in DEVICES})
    step = (await bench.step()).astype(np.float64)
    return (EXPECTED_UPDATES * step - exact) * 2.0**20


def has_stddev(noise: np.ndarray, wanted: float) -> bool:
    """Whether the noise has this standard deviation, within five standard errors.

    Holders draw from the machine's secure source: an honest one fails once in a million.
    """
    found = float(np.sqrt(np.mean(noise**2)))
    return abs(found / wanted - 1) < 5 / math.sqrt(2 * len(noise))


def check_noise(noise: np.ndarray, process: Process, *, dealers: tuple[str, ...]) -> None:
    """All dealers' noise is in the sum; what the smallest honest part has is enough."""
    (record,) = process.observer.finished
    assert record.shared is not None
    assert tuple(name for name, _ in record.shared.dealers) == dealers
    # (2, 5): one of four may collude, so that three must have the noise that was asked for.
    bound = 2.0**20 + math.sqrt(DIM) / 2
    stddev = MULTIPLIER * bound / math.sqrt(3)
    assert has_stddev(noise, 2 * stddev)
    # One dealer less, or what was asked for alone, would be noticed.
    assert not has_stddev(noise, math.sqrt(3) * stddev)
    assert not has_stddev(0.85 * noise, 2 * stddev)


@pytest.mark.parametrize("ticks", range(MAX_TICKS))
async def test_noise_outlives_the_leader_and_a_dealer(
    tmp_path: Path, redis_url: str, private: PrivateTask, ticks: int
) -> None:
    async with bench_of(
        tmp_path,
        redis_url,
        threshold=2,
        num_holders=5,
        dim=DIM,
        private=private,
        **{"sketch-dim": 1024},
    ) as bench:
        dead, heir = bench.process("a"), bench.process("b")
        await bench.collected(dead)
        assert (await bench.params()).noise_dealers == 4
        for _ in range(ticks):
            await dead.driver.tick()
        frozen = (await bench.round()).shared
        assert frozen is not None
        await bench.holders.stop(1)
        await dead.phases.close()
        await bench.advance(LEASE_MS + 1)
        for _ in range(3):
            await bench.drive(heir)
        noise = await noise_of(bench)
        by_first = tuple(f"noise:{holder}" for holder in (1, 2, 3, 4))
        by_others = tuple(f"noise:{holder}" for holder in (2, 3, 4, 5))
        (record,) = (*dead.observer.finished, *heir.observer.finished)
        assert record.shared is not None
        used = tuple(name for name, _ in record.shared.dealers)
        assert used in {by_first, by_others}
        if frozen.dealers:
            assert record.shared.dealers == frozen.dealers
        check_noise(noise, dead if dead.observer.finished else heir, dealers=used)
        assert await bench.blobs.list("updates") == []


async def test_a_holder_that_comes_back_gets_the_noise_of_a_dealer_that_died(
    tmp_path: Path, redis_url: str, private: PrivateTask
) -> None:
    async with bench_of(
        tmp_path,
        redis_url,
        threshold=2,
        num_holders=5,
        dim=DIM,
        private=private,
        checks="sum",
    ) as bench:
        process = bench.process("a")
        await bench.collected(process)
        await bench.holders.stop(5)
        assert await process.driver.tick()  # the goal is reached
        while (await bench.round()).phase is Phase.FREEZING:
            await process.driver.tick()
            await bench.advance(1_000)
        frozen = await bench.round()
        assert frozen.phase is Phase.CHECKING
        assert frozen.shared is not None
        dealers = tuple(name for name, _ in frozen.shared.dealers)
        assert dealers == ("noise:1", "noise:2", "noise:3", "noise:4")
        await bench.holders.stop(1)
        await bench.holders.start(5)
        heir = bench.process("b")  # with nothing in its memory
        await process.phases.close()
        await bench.advance(LEASE_MS + 1)
        for _ in range(3):
            await bench.drive(heir)
        check_noise(await noise_of(bench), heir, dealers=dealers)


async def test_a_round_without_enough_dealers_ends_without_a_sum(
    tmp_path: Path, redis_url: str, private: PrivateTask
) -> None:
    """(2, 3): all three holders deal, so nothing is opened when one of them is away."""
    async with bench_of(
        tmp_path, redis_url, threshold=2, num_holders=3, dim=DIM, private=private, checks="sum"
    ) as bench:
        process = bench.process("a")
        await bench.collected(process)
        assert (await bench.params()).noise_dealers == 3
        await bench.holders.stop(2)
        await bench.drive(process)
        assert (await bench.round()).phase is Phase.FREEZING
        await bench.drive(process, ms=60_000)
        (record,) = process.observer.finished
        assert record.decision == "abandoned"
        assert record.reason.startswith("freeze_failed")
        assert not [kind for _, kind in process.observer.statements if kind == "sum"]
