"""One coordinator of real parts, in this process: gRPC service and driver, ticked by hand.

Its clock is a key of the round store. A fault point stands before every store the driver uses, and
another one before the round store the service uses.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
from opentelemetry import trace

from aggregators.config import AggregatorConfig
from monitoring.audit_logger import AuditLogger
from monitoring.logs import get_logger
from monitoring.metrics import Metrics, create_registry
from monitoring.rpc_meter import RpcMeter
from server.config import LimitsConfig, RoundsConfig
from server.kernels import Workers
from server.observation import AuditTrail, Observation
from server.round.aggregation import Aggregation
from server.round.candidate import AggregationSettings
from server.round.driver import DriverPorts, RoundDriver
from server.services.device_service import FederationService, ServicePorts
from server.services.identity import PeerIdentity
from server.services.models import ModelCatalog
from server.services.rpc import METHODS, ServiceInterceptor, federation_handlers
from server.services.submissions import Submissions
from server.storage.blobs import BlobStore
from server.storage.notifier import Notifier
from server.storage.ports import Durability
from server.storage.redis_client import Argument, RedisClient, Reply
from server.storage.redis_store import RedisRoundStore
from server.tasks import TaskDirectory, TaskInfo
from tests.chaos.faults import Crash, FaultPoint
from tests.chaos.operations import LEASE_MS, OFFER_MS

CLOCK_KEY: Final = "test:clock"
CLOCK: Final = f"local function now_ms() return tonumber(redis.call('GET', '{CLOCK_KEY}')) end"
MAX_TICKS: Final = 50


class FaultyClient(RedisClient):
    """Every command passes a fault point. `mutations` change the scripts: name -> (old, new)."""

    def __init__(
        self, url: str, *, faults: FaultPoint, mutations: Mapping[str, tuple[str, str]]
    ) -> None:
        super().__init__(url, clock=CLOCK)
        self._faults = faults
        self._mutations = mutations

    async def command(self, *args: Argument) -> Reply:
        if args[0] == "SCRIPT LOAD":  # happens once and changes nothing
            return await super().command(args[0], self._mutated(str(args[1])))
        return await self._faults.around(lambda: super(FaultyClient, self).command(*args))

    def _mutated(self, script: str) -> str:
        for old, new in self._mutations.values():
            script = script.replace(old, new)
        return script


class FaultyBlobs(BlobStore):
    """What the driver does to blobs passes a fault point."""

    def __init__(self, url: str, *, faults: FaultPoint) -> None:
        super().__init__(url, durability=Durability.PROCESS, num_threads=1)
        self._faults = faults

    async def put(self, key: str, data: bytes | memoryview) -> None:
        await self._faults.around(lambda: super(FaultyBlobs, self).put(key, data))

    async def get(self, key: str) -> bytes:
        return await self._faults.around(lambda: super(FaultyBlobs, self).get(key))

    async def delete_prefix(self, prefix: str) -> int:
        return await self._faults.around(lambda: super(FaultyBlobs, self).delete_prefix(prefix))
