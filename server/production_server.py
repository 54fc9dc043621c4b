"""One coordinator process: the device API, the admin API and a driver for every task."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from monitoring.logs import get_logger
from protos.fedagg.v1 import enrollment_pb2, enrollment_pb2_grpc, federation_pb2
from server.config import ServerConfig
from server.devices.device_service import FederationService
from server.devices.enrollment_service import EnrollmentService
from server.devices.handlers import federation_handlers
from server.driver.driver import RoundDriver
from server.storage.notifier import Notifier
from server.wire.http import HttpServer
from server.wire.interceptor import ServiceInterceptor

MAX_MESSAGE_BYTES: Final = 2 << 20
DRAIN_S: Final = 5.0

# Without these gRPC buffers whole updates of every open stream (bandwidth probing grows the
# windows), and the window of uploads in flight would bound nothing.
OPTIONS: Final = (
    ("grpc.so_reuseport", 1),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 256 << 10),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # A device looks its servers up again only when a connection ends. Without an age, coordinators
    # that were added or came back would get none of the devices that are there already. Calls under
    # way end as they would have.
    ("grpc.max_connection_age_ms", 120_000),
)

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerParts:
    """Everything a coordinator is made of, wired by `server/app.py`."""

    config: ServerConfig
    federation: FederationService
    enrollment: EnrollmentService
    interceptor: ServiceInterceptor
    drivers: Sequence[RoundDriver]
    notifier: Notifier
    http: HttpServer
    metrics: HttpServer
    credentials: grpc.ServerCredentials | None = None
    enrollment_credentials: grpc.ServerCredentials | None = None
    closers: Sequence[Callable[[], Awaitable[None]]] = field(default=())


class ProductionFederatedServer:
    """Runs the parts; `start` once, `stop` once.

    After `start` the process answers devices and drives every task whose lease it can get. After
    `stop` calls under way are answered, leases are given back and stores are closed. A process that
    is killed instead loses nothing but time: another one takes its leases over.
    """

    def __init__(self, parts: ServerParts) -> None:
        self._parts = parts
        self._server = grpc.aio.server(
            interceptors=[parts.interceptor],
            options=OPTIONS,
            maximum_concurrent_rpcs=parts.config.limits.calls_in_flight,
        )
        # A port asks every peer for a certificate or none, and who enrolls has none yet.
        self._enrollment = (
            grpc.aio.server(interceptors=[parts.interceptor], options=OPTIONS)
            if parts.config.listen.enrollment
            else None
        )
        self._health = health.aio.HealthServicer()
        self._tasks: list[asyncio.Task[None]] = []
        self.grpc_port = 0

    @property
    def http_port(self) -> int:
        """Port of the HTTP API, known from the start."""
        return self._parts.http.port

    @property
    def metrics_port(self) -> int:
        """Port of the process's own metrics, known from the start."""
        return self._parts.metrics.port

    async def start(self) -> None:
        """Open the ports, then answer devices and drive tasks in the background.

        Raises:
            RuntimeError: if gRPC cannot listen on an address.
        """
        parts = self._parts
        self._server.add_generic_rpc_handlers((federation_handlers(parts.federation),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (
            federation_pb2.DESCRIPTOR.services_by_name["Federation"].full_name,
            enrollment_pb2.DESCRIPTOR.services_by_name["Enrollment"].full_name,
        )
        reflection.enable_server_reflection(
            (*names, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        listen = parts.config.listen
        self.grpc_port = _bind(self._server, listen.grpc, parts.credentials)
        enrollment = self._enrollment or self._server
        enrollment_pb2_grpc.add_EnrollmentServicer_to_server(parts.enrollment, enrollment)
        if self._enrollment is not None:
            _bind(self._enrollment, listen.enrollment, parts.enrollment_credentials)
            await self._enrollment.start()
        self._tasks.append(asyncio.create_task(parts.notifier.run(), name="notifier"))
        self._tasks += [
            asyncio.create_task(driver.run(), name="driver") for driver in parts.drivers
        ]
        await self._server.start()
        await parts.http.start()
        await parts.metrics.start()
        for name in ("", *names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        _log.info("server_started", grpc_port=self.grpc_port, http_port=self.http_port)

    async def stop(self) -> None:
        """End in order: health, check-ins that wait, drivers, calls, HTTP, stores.

        Calls under way have `DRAIN_S` seconds to end.
        """
        await self._health.enter_graceful_shutdown()
        self._parts.federation.drain()
        pending = set(self._tasks)
        while pending:  # a library that is connecting may take a cancellation for a timeout
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=1)
        for ended in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                _log.error("task_failed", error=f"{type(ended).__name__}: {ended}")
        await self._server.stop(DRAIN_S)
        if self._enrollment is not None:
            await self._enrollment.stop(DRAIN_S)
        await asyncio.gather(self._parts.http.stop(), self._parts.metrics.stop())
        for close in self._parts.closers:
            await close()
        _log.info("server_stopped")


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    if credentials is None:
        return server.add_insecure_port(address)
    return server.add_secure_port(address, credentials)
