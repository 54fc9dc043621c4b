"""One coordinator of real parts, in this process: gRPC service and driver, ticked by hand.

A fault point stands before every store the driver uses, and another one before the round store the
service uses.
"""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import grpc
from opentelemetry import trace

from monitoring.audit_logger import AuditLogger
from monitoring.logs import get_logger
from monitoring.metrics import Metrics, create_registry
from monitoring.rpc_meter import RpcMeter
from server.config import LimitsConfig, RoundsConfig
from server.config.durability import Durability
from server.devices.device_service import FederationService, ServicePorts
from server.devices.handlers import METHODS, federation_handlers
from server.devices.round_plans import RoundPlans
from server.driver.aggregation import Aggregation
from server.driver.driver import DriverPorts, RoundDriver
from server.errors import StoreUnavailable
from server.intake.submissions import Submissions
from server.intake.uploads import Uploads
from server.models.model_catalog import ModelCatalog
from server.observation.audit_trail import AuditTrail
from server.observation.observation import Observation
from server.privacy.budget_gate import PrivateRounds
from server.processes.thread_pool import Workers
from server.round.state import CandidateModel, Round
from server.storage.blobs import BlobStore
from server.storage.notifier import News
from server.storage.redis_client import RedisClient
from server.task.task_info import TaskDirectory, TaskInfo
from server.wire.identity import PeerIdentity
from server.wire.interceptor import ServiceInterceptor
from tests.chaos.faults import Crash, Fault, FaultPoint
from tests.chaos.operations import LEASE_MS, OFFER_MS
from tests.chaos.promise import require
from tests.chaos.stores import (
    FaultyBlobs,
    FaultyClient,
    Fences,
    Releases,
    Sabotage,
    SabotagedStore,
    WatchedStore,
)
from tests.server.round.stepping import settings_of

MAX_TICKS: Final = 50


class WatchedAggregation(Aggregation):
    """Notes the rounds that are computed, before anything is."""

    def __init__(self, releases: Releases, **parts: Any) -> None:
        super().__init__(**parts)
        self._releases = releases

    async def aggregate(self, round_: Round) -> CandidateModel | str | None:
        self._releases.computed.add(round_.number)
        return await super().aggregate(round_)


class Laboratory:
    """What outlives a simulation: connections, threads, metrics. Use it in one event loop."""

    def __init__(self, url: str, *, coordinators: int, sabotage: Sabotage) -> None:
        self.sabotage = sabotage
        self.metrics = Metrics.declare(create_registry())
        self.observation = Observation(
            metrics=self.metrics, log=get_logger("tests.chaos"), tracer=trace.NoOpTracer()
        )
        self.kernels = Workers("kernel", threads=1)
        self.files = Workers("files", threads=2)
        self.control = RedisClient(url)  # of the test itself: never fails
        self.driver_clients = [self._client(url) for _ in range(coordinators)]
        self.service_clients = [self._client(url) for _ in range(coordinators)]

    async def close(self) -> None:
        for client in (self.control, *self.driver_clients, *self.service_clients):
            await client.close()
        self.kernels.close()
        self.files.close()

    def _client(self, url: str) -> FaultyClient:
        return FaultyClient(url, faults=FaultPoint(), sabotage=self.sabotage)


class Coordinator:
    """A service on a port of its own and a driver that works only when told.

    Args:
        lab: shared parts.
        index: which of the laboratory's connections to use.
        info: the one task.
        data_dir: of this simulation, shared by its coordinators.
        fences: shared by the coordinators.
        releases: shared by the coordinators.
        private: None: the task's rounds are not private.
    """

    def __init__(
        self,
        lab: Laboratory,
        index: int,
        info: TaskInfo,
        *,
        data_dir: Path,
        fences: Fences,
        releases: Releases,
        private: PrivateRounds | None = None,
    ) -> None:
        self._info = info
        self._releases = releases
        self._private = private
        self._index = index
        self._generation = 0
        self.driver_faults = lab.driver_clients[index].faults
        self.service_faults = lab.service_clients[index].faults
        self._blobs = BlobStore(
            str(data_dir / "blobs"), durability=Durability.PROCESS, num_threads=1
        )
        self._driver_blobs = FaultyBlobs(str(data_dir / "blobs"), faults=self.driver_faults)
        self._driver_ports = self._wire_driver(lab, index, data_dir, fences)
        self.driver = self._new_driver()
        self._tick: asyncio.Task[None] | None = None
        self._server = grpc.aio.server(
            interceptors=[
                ServiceInterceptor(
                    METHODS, meter=RpcMeter(lab.metrics, METHODS), log=get_logger("tests.chaos")
                )
            ]
        )
        self._server.add_generic_rpc_handlers(
            (federation_handlers(self._wire_service(lab, index, fences)),)
        )
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self.kill()
        await self._server.stop(None)
        self._blobs.close()
        self._driver_blobs.close()

    @property
    def is_paused(self) -> bool:
        return self._tick is not None

    async def drive(self, fault: Fault | None) -> None:
        """Let the driver work until it has nothing to do or the fault stops it."""
        if self._tick is not None:
            return
        self.driver_faults.arm(fault)
        self._tick = asyncio.create_task(self._tick_until_idle())
        await self._until_stopped()

    async def resume(self) -> None:
        """Let a driver that stood still go on."""
        if self._tick is not None:
            self.driver_faults.resume()
            await self._until_stopped()

    async def kill(self) -> None:
        """End the driver, whatever it is doing; the next one is a stranger to the lease."""
        if self._tick is not None:
            self._tick.cancel()
            with suppress(asyncio.CancelledError):
                await self._tick
            self._tick = None
        self.driver_faults.reset()
        self.driver = self._new_driver()

    async def _until_stopped(self) -> None:
        if self._tick is None:
            return
        paused = asyncio.create_task(self.driver_faults.paused.wait())
        await asyncio.wait({self._tick, paused}, return_when=asyncio.FIRST_COMPLETED)
        paused.cancel()
        if not self._tick.done():
            return
        tick, self._tick = self._tick, None
        self.driver_faults.reset()
        try:
            tick.result()
        except Crash:
            self.driver = self._new_driver()
        except StoreUnavailable:
            pass  # what the driver's own loop waits after

    async def _tick_until_idle(self) -> None:
        for _ in range(MAX_TICKS):
            if not await self.driver.tick():
                return
        require(False, f"the driver still finds work after {MAX_TICKS} ticks")

    def _new_driver(self) -> RoundDriver:
        self._generation += 1
        return RoundDriver(
            self._info,
            rounds=RoundsConfig(lease_ttl_s=LEASE_MS / 1000),
            ports=self._driver_ports,
            owner=f"coordinator-{self._index}.{self._generation}",
        )

    def _wire_driver(
        self, lab: Laboratory, index: int, data_dir: Path, fences: Fences
    ) -> DriverPorts:
        client = lab.driver_clients[index]
        store = WatchedStore(client, fences=fences, releases=self._releases, sabotage=lab.sabotage)
        return DriverPorts(
            rounds=store,
            admission=store,
            ledger=store,
            registry=store,
            aggregation=WatchedAggregation(
                self._releases,
                admission=SabotagedStore(client, sabotage=lab.sabotage),
                ledger=store,
                registry=store,
                blobs=self._driver_blobs,
                workers=lab.kernels,
                settings=settings_of(),
                observer=lab.observation,
            ),
            observer=lab.observation,
            audit=AuditTrail(AuditLogger(data_dir / "audit.jsonl"), lab.files, metrics=lab.metrics),
            wakeup=News(),
            private=self._private,
        )

    def _wire_service(self, lab: Laboratory, index: int, fences: Fences) -> FederationService:
        client = lab.service_clients[index]
        store = WatchedStore(client, fences=fences)
        tasks = TaskDirectory([self._info])
        limits = LimitsConfig()
        return FederationService(
            ServicePorts(
                tasks=tasks,
                rounds=store,
                admission=store,
                models=ModelCatalog(
                    registry=store,
                    rounds=store,
                    blobs=self._blobs,
                    cache_bytes=limits.model_cache_bytes,
                ),
                submissions=Submissions(
                    tasks=tasks,
                    rounds=store,
                    admission=store,
                    uploads=Uploads(blobs=self._blobs, workers=lab.files, limits=limits),
                    observer=lab.observation,
                    limits=limits,
                ),
                news=News(),
                identity=PeerIdentity(required=False),
                observer=lab.observation,
                check_in_ttl_s=OFFER_MS / 1000,
                check_ins_held=limits.check_ins_held,
                plans=RoundPlans({}),
            )
        )
