"""The composition root of a coordinator: wires what others have prepared, and decides nothing.

`build_server` turns a configuration into a coordinator. Everyone else receives ports.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

import grpc
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from aggregators.engines.engine import Engine
from aggregators.warm_up import warm_up
from monitoring.audit_logger import AuditLogger
from monitoring.health import Health, run_probes
from monitoring.logs import get_logger
from monitoring.metrics import Metrics, create_registry
from monitoring.rpc_meter import RpcMeter
from monitoring.tracing import Tracing, configure_tracing
from server.admin.routes import create_admin_app
from server.admin.store_backend import StoreBackend
from server.compression.round_compression import RoundCompression
from server.config import ServerConfig
from server.devices.device_service import FederationService, ServicePorts
from server.devices.enrollment_service import EnrollmentService
from server.devices.handlers import METHODS
from server.devices.round_plans import RoundPlans
from server.driver.wiring import DriverWiring
from server.intake.submissions import Submissions
from server.intake.uploads import Uploads
from server.models.model_catalog import ModelCatalog
from server.observation.audit_trail import AuditTrail
from server.observation.observation import Observation
from server.preparation import PreparedServer, ServerTls, prepare_server
from server.processes.thread_pool import Workers
from server.production_server import ProductionFederatedServer, ServerParts
from server.storage.blobs import BlobStore
from server.storage.notifier import Notifier
from server.storage.redis_client import SERVER_CLOCK, RedisClient
from server.storage.redis_store import RedisRoundStore
from server.storage.startup import await_store, check_durability, check_installation
from server.task.creation import create_task
from server.task.engines import open_engines
from server.task.preparation import PreparedTask
from server.task.task_info import TaskDirectory
from server.wire.http import HttpServer
from server.wire.identity import PeerIdentity
from server.wire.interceptor import ServiceInterceptor
from server.wire.probes import create_metrics_app

FILE_THREADS: Final = 4


async def build_server(
    config: ServerConfig, *, store_url: str, clock: str = SERVER_CLOCK
) -> ProductionFederatedServer:
    """Connect the stores, create the tasks that are new, and wire a coordinator.

    Args:
        config: what was configured.
        store_url: where the round store answers (an embedded one is already running).
        clock: Lua that defines `now_ms()`; see `RedisClient`.

    Raises:
        ConfigError: if a setting cannot work, such as an unknown rule or an unreadable model.
        StoreUnavailable: if the round store does not answer in time.
    """
    resources = AsyncExitStack()
    try:
        return await _wire(config, store_url, clock, resources)
    except BaseException:
        await resources.aclose()
        raise


async def _wire(
    config: ServerConfig, store_url: str, clock: str, resources: AsyncExitStack
) -> ProductionFederatedServer:
    accountants = _workers("accountant", 1, resources)
    prepared = await asyncio.to_thread(
        prepare_server, config, accountants=accountants, now_s=time.time()
    )
    watch = _watch(config, resources)
    stores = await _open_stores(config, store_url, clock, watch.metrics, resources)
    engines = open_engines(config, resources)
    kernels = _workers("kernel", 1, resources)
    for task in prepared.tasks:
        await kernels.run(warm_up, task.rule)
    files = _workers("files", FILE_THREADS, resources)
    await check_installation(stores.store, stores.blobs, config)
    for task in prepared.tasks:
        await create_task(task, stores.store, stores.blobs)
    return _Coordinator(
        config=config,
        prepared=prepared,
        tasks=TaskDirectory([task.info for task in prepared.tasks]),
        watch=watch,
        stores=stores,
        engines=engines,
        kernels=kernels,
        files=files,
        resources=resources,
    ).server()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watch:
    """What watches a coordinator."""

    registry: CollectorRegistry
    metrics: Metrics
    tracing: Tracing
    observation: Observation


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stores:
    client: RedisClient
    store: RedisRoundStore
    blobs: BlobStore


@dataclass(frozen=True, slots=True, kw_only=True)
class _Coordinator:
    """Everything that is open, and how it goes together."""

    config: ServerConfig
    prepared: PreparedServer
    tasks: TaskDirectory
    watch: _Watch
    stores: _Stores
    engines: Mapping[str, Engine]
    kernels: Workers
    files: Workers
    resources: AsyncExitStack

    def server(self) -> ProductionFederatedServer:
        config, prepared, watch, stores = self.config, self.prepared, self.watch, self.stores
        notifier = Notifier(stores.client.redis, self.tasks.names)
        compressions = self._compressions()
        wiring = self._drivers(notifier, compressions)
        models = ModelCatalog(
            registry=stores.store,
            rounds=stores.store,
            blobs=stores.blobs,
            cache_bytes=config.limits.model_cache_bytes,
        )
        return ProductionFederatedServer(
            ServerParts(
                config=config,
                federation=self._federation(notifier, models, compressions),
                enrollment=EnrollmentService(
                    prepared.authority, ledger=stores.store, metrics=watch.metrics, now_s=time.time
                ),
                interceptor=ServiceInterceptor(
                    METHODS,
                    meter=RpcMeter(watch.metrics, METHODS),
                    log=get_logger("server.rpc"),
                    tracer=watch.tracing.tracer("server.rpc") if watch.tracing.is_on else None,
                ),
                drivers=[wiring.driver(task) for task in prepared.tasks],
                notifier=notifier,
                http=HttpServer(self._admin(wiring, models), config.listen.http),
                metrics=HttpServer(create_metrics_app(watch.registry), config.listen.metrics),
                credentials=_credentials(prepared.tls, ask_client=True),
                enrollment_credentials=_credentials(prepared.tls, ask_client=False),
                closers=[self.resources.aclose],
            )
        )

    def _compressions(self) -> dict[str, RoundCompression]:
        found = {}
        for name in self.tasks.names:
            compression = self.tasks[name].compression
            if compression is not None:
                found[name] = RoundCompression(
                    compression,
                    registry=self.stores.store,
                    files=self.stores.blobs,
                    workers=self.files,
                )
        return found

    def _drivers(
        self, notifier: Notifier, compressions: Mapping[str, RoundCompression]
    ) -> DriverWiring:
        return DriverWiring(
            config=self.config,
            store=self.stores.store,
            blobs=self.stores.blobs,
            kernels=self.kernels,
            compressions=compressions,
            observation=self.watch.observation,
            audit=AuditTrail(AuditLogger(self.config.audit_path), self.files, self.watch.metrics),
            wakeup=notifier.drivers,
            engines=self.engines,
        )

    def _federation(
        self,
        notifier: Notifier,
        models: ModelCatalog,
        compressions: Mapping[str, RoundCompression],
    ) -> FederationService:
        config, stores = self.config, self.stores
        submissions = Submissions(
            tasks=self.tasks,
            rounds=stores.store,
            admission=stores.store,
            uploads=Uploads(blobs=stores.blobs, workers=self.files, limits=config.limits),
            observer=self.watch.observation,
            limits=config.limits,
        )
        return FederationService(
            ServicePorts(
                tasks=self.tasks,
                rounds=stores.store,
                admission=stores.store,
                models=models,
                submissions=submissions,
                news=notifier.devices,
                identity=PeerIdentity(
                    required=config.tls.is_complete, gateways=config.tls.gateways
                ),
                observer=self.watch.observation,
                check_in_ttl_s=config.rounds.check_in_ttl_s,
                check_ins_held=config.limits.check_ins_held,
                plans=RoundPlans(compressions),
            )
        )

    def _admin(self, wiring: DriverWiring, models: ModelCatalog) -> ASGIApp:
        store, blobs = self.stores.store, self.stores.blobs

        async def round_store() -> str:
            await store.ping()
            return ""

        async def blob_store() -> str:
            await blobs.size("ready")
            return ""

        async def health() -> Health:
            return await run_probes({"round_store": round_store, "blob_store": blob_store})

        token = self.config.admin.token
        tasks: Sequence[PreparedTask] = self.prepared.tasks
        return create_admin_app(
            StoreBackend(
                rounds=store,
                ledger=store,
                registry=store,
                tasks=self.tasks,
                models=models,
                on_rollback=self.watch.observation.rolled_back,
                replayers={task.info.name: wiring.replayer(task) for task in tasks},
                private={task.info.name: task.private for task in tasks if task.private},
            ),
            health,
            token=token.get_secret_value() if token else None,
        )


def _workers(name: str, threads: int, resources: AsyncExitStack) -> Workers:
    workers = Workers(name, threads=threads)
    resources.callback(workers.close)
    return workers


def _watch(config: ServerConfig, resources: AsyncExitStack) -> _Watch:
    registry = create_registry()
    metrics = Metrics.declare(registry)
    tracing = _tracing(config)
    resources.callback(tracing.shutdown)
    observation = Observation(
        metrics=metrics, log=get_logger("server.round"), tracer=tracing.tracer("server.round")
    )
    return _Watch(registry=registry, metrics=metrics, tracing=tracing, observation=observation)


async def _open_stores(
    config: ServerConfig,
    store_url: str,
    clock: str,
    metrics: Metrics,
    resources: AsyncExitStack,
) -> _Stores:
    client = RedisClient(store_url, clock=clock, observe=metrics.store_roundtrip_seconds.observe)
    resources.push_async_callback(client.close)
    store = RedisRoundStore(client, receipt_retention_s=config.store.receipt_retention_s)
    await await_store(store)
    await check_durability(client, config)
    config.store.data_dir.mkdir(parents=True, exist_ok=True)
    blobs = BlobStore(config.blob_url, durability=config.store.durability)
    resources.callback(blobs.close)
    return _Stores(client=client, store=store, blobs=blobs)


def _tracing(config: ServerConfig) -> Tracing:
    return configure_tracing(
        service_name="fedagg-coordinator",
        otlp_endpoint=config.observability.otlp_endpoint or None,
        sample_ratio=config.observability.trace_sample_ratio,
    )


def _credentials(tls: ServerTls | None, *, ask_client: bool) -> grpc.ServerCredentials | None:
    """Read one port's TLS; `ask_client` demands a certificate of the devices' authority."""
    if tls is None:
        return None
    return grpc.ssl_server_credentials(
        [(tls.credentials.private_key_pem, tls.credentials.certificate_pem)],
        root_certificates=tls.client_ca if ask_client else None,
        require_client_auth=ask_client,
    )
