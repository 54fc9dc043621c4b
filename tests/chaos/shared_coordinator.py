"""One coordinator of shared rounds, of real parts, ticked by hand; and the holders it talks to."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from opentelemetry import trace

from monitoring.logs import get_logger
from monitoring.metrics import Metrics, create_registry
from security.shared_round.terms.committee import Committee
from server.config import RoundsConfig, TaskConfig
from server.driver.driver import DriverPorts, RoundDriver
from server.driver.shared_aggregation import SharedAggregation
from server.errors import StoreUnavailable
from server.observation.observation import Observation
from server.processes.thread_pool import Workers
from server.round.ports import FinishedRound
from server.sharing.pool import HolderPool
from server.sharing.shared_rounds import SharedRoundPhases
from server.storage.notifier import News
from server.storage.redis_client import RedisClient
from server.task.resolving import shared_task, task_info
from tests.chaos.faults import Crash, Fault, FaultPoint
from tests.chaos.promise import require
from tests.chaos.shared_holders import HolderFleet
from tests.chaos.shared_operations import COORDINATORS, LEASE_MS
from tests.chaos.stores import CLOCK, FaultyBlobs, FaultyClient, Fences, Sabotage, WatchedStore
from tests.server.round.stepping import settings_of

DIM: Final = 12
CALL_TIMEOUT_S: Final = 5.0


class SharedLaboratory:
    """What outlives a simulation: holders, connections, threads. Use it in one event loop."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        self.observation = Observation(
            metrics=Metrics.declare(create_registry()),
            log=get_logger("tests.chaos"),
            tracer=trace.NoOpTracer(),
        )
        self.workers = Workers("kernel", threads=1)
        self.control = RedisClient(url, clock=CLOCK)  # of the test itself: never fails
        self.clients = [
            FaultyClient(url, faults=FaultPoint(), sabotage=Sabotage()) for _ in range(COORDINATORS)
        ]
        self.fleet = HolderFleet(folder / "committee")
        self.simulations = 0

    async def start(self) -> None:
        await self.fleet.start()

    async def close(self) -> None:
        await self.fleet.close()
        for client in (self.control, *self.clients):
            await client.close()
        self.workers.close()


@dataclass
class Kept:
    """The finished rounds, as they are handed over to be written down."""

    rounds: dict[int, FinishedRound] = field(default_factory=dict)

    async def record(self, finished: FinishedRound) -> None:
        known = self.rounds.setdefault(finished.number, finished)
        require(known == finished, f"round {finished.number} ended twice")


class SharedCoordinator:
    """A driver with its view of the holders. What it does, it does when told.

    Args:
        lab: shared parts.
        index: which of the laboratory's connections to use.
        config: the one task.
        committee: with the addresses of the wires.
        kept: where rounds are written down.
        fences: shared by the coordinators.
    """

    def __init__(
        self,
        lab: SharedLaboratory,
        index: int,
        config: TaskConfig,
        *,
        committee: Committee,
        kept: Kept,
        fences: Fences,
    ) -> None:
        self._lab = lab
        self._index = index
        self._config = config
        self._shared = shared_task(config, committee)
        self._kept = kept
        self._generation = 0
        self._client = lab.clients[index]
        self._client.faults.reset()
        self._store = WatchedStore(self._client, fences=fences)
        self._blobs = FaultyBlobs(str(lab.folder / "blobs"), faults=self._client.faults)
        self._phases, self._driver = self._begin()
        self._tick: asyncio.Task[None] | None = None

    async def stop(self) -> None:
        await self.kill()
        await self._phases.close()
        self._blobs.close()

    async def drive(self, ticks: int, fault: Fault | None) -> None:
        """Let the driver work until it has nothing to do or the fault stops it."""
        if self._tick is not None:
            return
        self._client.faults.arm(fault)
        self._tick = asyncio.create_task(self._work(ticks))
        await self._until_stopped()

    async def resume(self) -> None:
        """Let a driver that stood still go on."""
        if self._tick is not None:
            self._client.faults.resume()
            await self._until_stopped()

    async def kill(self) -> None:
        """End the driver, whatever it is doing; the next one knows nothing."""
        if self._tick is not None:
            self._tick.cancel()
            with suppress(asyncio.CancelledError):
                await self._tick
            self._tick = None
        self._client.faults.reset()
        await self._replace()

    async def _replace(self) -> None:
        await self._phases.close()
        self._phases, self._driver = self._begin()

    async def _until_stopped(self) -> None:
        if self._tick is None:
            return
        faults = self._client.faults
        paused = asyncio.create_task(faults.paused.wait())
        await asyncio.wait({self._tick, paused}, return_when=asyncio.FIRST_COMPLETED)
        paused.cancel()
        if not self._tick.done():
            return
        tick, self._tick = self._tick, None
        faults.reset()
        try:
            tick.result()
        except Crash:
            await self._replace()
        except StoreUnavailable:
            pass  # what the driver's own loop waits after

    async def _work(self, ticks: int) -> None:
        for _ in range(ticks):
            goes_on = await self._driver.tick()
            await self._relayed()
            if not goes_on:
                return

    async def _relayed(self) -> None:
        """Wait for what goes on in the background, so that a list of operations repeats."""
        running = [
            session._running for session in self._phases._sessions.values() if session._running
        ]
        if running:
            await asyncio.wait(running)

    def _begin(self) -> tuple[SharedRoundPhases, RoundDriver]:
        self._generation += 1
        lab, task = self._lab, self._config
        phases = SharedRoundPhases(
            self._shared,
            pool=HolderPool(
                task.name,
                self._shared.committee,
                credentials=None,
                timeout_s=CALL_TIMEOUT_S,
                observer=lab.observation,
            ),
            admission=self._store,
            registry=self._store,
            blobs=self._blobs,
            workers=lab.workers,
            observer=lab.observation,
        )
        aggregation = SharedAggregation(
            phases=phases,
            rule="mean",
            rounds=self._store,
            admission=self._store,
            ledger=self._store,
            registry=self._store,
            blobs=self._blobs,
            workers=lab.workers,
            settings=settings_of(),
            observer=lab.observation,
        )
        driver = RoundDriver(
            task_info(task, dim=DIM, shared=self._shared),
            rounds=RoundsConfig(lease_ttl_s=LEASE_MS / 1000),
            ports=DriverPorts(
                rounds=self._store,
                admission=self._store,
                ledger=self._store,
                registry=self._store,
                aggregation=aggregation,
                observer=lab.observation,
                audit=self._kept,
                wakeup=News(),
                shared=phases,
            ),
            owner=f"coordinator-{self._index}.{self._generation}",
        )
        return phases, driver
