"""The composition root: the only module that names concrete classes.

`build_server` turns a configuration into a coordinator. Everyone else receives ports.
"""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import grpc

from aggregators.engines.engine import Engine, make_engine
from aggregators.engines.engine_options import EngineOptions
from aggregators.errors import AggregationError
from aggregators.kernels.threads import num_cores
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
from server.config import ConfigError, ServerConfig
from server.devices.device_service import FederationService, ServicePorts
from server.devices.enrollment_service import EnrollmentService
from server.devices.handlers import METHODS
from server.devices.round_plans import RoundPlans
from server.driver.aggregation import Aggregation
from server.driver.driver import DriverPorts, RoundDriver
from server.driver.shared_aggregation import SharedAggregation
from server.errors import StoreUnavailable
from server.intake.submissions import Submissions
from server.intake.uploads import Uploads
from server.models.model_catalog import ModelCatalog
from server.models.replay import Replayer
from server.observation.audit_trail import AuditTrail
from server.observation.observation import Observation
from server.opening import TlsFiles, open_server
from server.processes.thread_pool import Workers
from server.production_server import ProductionFederatedServer, ServerParts
from server.round.blob_names import installation_blob, model_blob
from server.round.candidate import AggregationSettings
from server.round.ports import ModelVersion
from server.sharing.pool import HolderPool
from server.sharing.shared_rounds import SharedRoundPhases
from server.sharing.shared_task import SharedTask
from server.storage.blobs import BlobStore
from server.storage.embedded import durability_problem
from server.storage.notifier import News, Notifier
from server.storage.redis_client import SERVER_CLOCK, RedisClient
from server.storage.redis_store import RedisRoundStore
from server.task.opening import HolderFiles, OpenedTask
from server.task.task_info import TaskDirectory
from server.wire.http import HttpServer
from server.wire.identity import PeerIdentity
from server.wire.interceptor import ServiceInterceptor
from server.wire.probes import create_metrics_app

if TYPE_CHECKING:
    pass

STORE_WAIT_S: Final = 30.0
STORE_RETRY_S: Final = 0.2
FILE_THREADS: Final = 4

_log = get_logger(__name__)


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
    accountants = Workers("accountant", threads=1)
    resources.callback(accountants.close)
    opened = await asyncio.to_thread(
        open_server, config, accountants=accountants, now_s=time.time()
    )
    registry = create_registry()
    metrics = Metrics.declare(registry)
    client = RedisClient(store_url, clock=clock, observe=metrics.store_roundtrip_seconds.observe)
    resources.push_async_callback(client.close)
    store = RedisRoundStore(client, receipt_retention_s=config.store.receipt_retention_s)
    await _await_store(store)
    await _check_durability(client, config)
    config.store.data_dir.mkdir(parents=True, exist_ok=True)
    blobs = BlobStore(config.blob_url, durability=config.store.durability)
    resources.callback(blobs.close)
    engines = _open_engines(config, resources)
    kernels = Workers("kernel", threads=1)
    resources.callback(kernels.close)
    for task in opened.tasks:
        await kernels.run(warm_up, task.rule)
    files = Workers("files", threads=FILE_THREADS)
    resources.callback(files.close)
    tracing = _tracing(config)
    resources.callback(tracing.shutdown)
    observation = Observation(
        metrics=metrics, log=get_logger("server.round"), tracer=tracing.tracer("server.round")
    )
    await _check_installation(store, blobs, config)
    for task in opened.tasks:
        await _create_task(task, store, blobs)
    tasks = TaskDirectory([task.info for task in opened.tasks])
    private = {task.info.name: task.private for task in opened.tasks if task.private is not None}
    compressions = {
        info.name: RoundCompression(info.compression, models=store, files=blobs, workers=files)
        for info in (tasks[name] for name in tasks.names)
        if info.compression is not None
    }
    notifier = Notifier(client.redis, tasks.names)
    audit = AuditTrail(AuditLogger(config.audit_path), files, metrics)

    wiring = _DriverWiring(
        config=config,
        store=store,
        blobs=blobs,
        kernels=kernels,
        compressions=compressions,
        observation=observation,
        audit=audit,
        wakeup=notifier.drivers,
        engines=engines,
    )

    async def health() -> Health:
        async def round_store() -> str:
            await store.ping()
            return ""

        async def blob_store() -> str:
            await blobs.size("ready")
            return ""

        return await run_probes({"round_store": round_store, "blob_store": blob_store})

    models = ModelCatalog(store=store, blobs=blobs, cache_bytes=config.limits.model_cache_bytes)
    federation = FederationService(
        ServicePorts(
            tasks=tasks,
            store=store,
            models=models,
            submissions=Submissions(
                tasks=tasks,
                store=store,
                uploads=Uploads(blobs=blobs, workers=files, limits=config.limits),
                observer=observation,
                limits=config.limits,
            ),
            news=notifier.devices,
            identity=PeerIdentity(required=config.tls.is_complete, gateways=config.tls.gateways),
            observer=observation,
            check_in_ttl_s=config.rounds.check_in_ttl_s,
            check_ins_held=config.limits.check_ins_held,
            plans=RoundPlans(compressions),
        )
    )
    token = config.admin.token
    admin = create_admin_app(
        StoreBackend(
            store=store,
            tasks=tasks,
            models=models,
            on_rollback=observation.rolled_back,
            replayers={task.info.name: wiring.replayer(task) for task in opened.tasks},
            private=private,
        ),
        health,
        token=token.get_secret_value() if token else None,
    )
    return ProductionFederatedServer(
        ServerParts(
            config=config,
            federation=federation,
            enrollment=EnrollmentService(
                opened.authority, ledger=store, metrics=metrics, now_s=time.time
            ),
            interceptor=ServiceInterceptor(
                METHODS,
                meter=RpcMeter(metrics, METHODS),
                log=get_logger("server.rpc"),
                tracer=tracing.tracer("server.rpc") if tracing.is_on else None,
            ),
            drivers=[wiring.driver(task) for task in opened.tasks],
            notifier=notifier,
            http=HttpServer(admin, config.listen.http),
            metrics=HttpServer(create_metrics_app(registry), config.listen.metrics),
            credentials=_credentials(opened.tls, ask_client=True),
            enrollment_credentials=_credentials(opened.tls, ask_client=False),
            closers=[resources.aclose],
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _DriverWiring:
    """What the drivers of all tasks share."""

    config: ServerConfig
    store: RedisRoundStore
    blobs: BlobStore
    kernels: Workers
    compressions: Mapping[str, RoundCompression]
    observation: Observation
    audit: AuditTrail
    wakeup: News
    engines: Mapping[str, Engine]

    def settings(self, task: OpenedTask) -> AggregationSettings:
        return replace(task.aggregation, engine=self.engines[task.engine])

    def replayer(self, task: OpenedTask) -> Replayer:
        return Replayer(
            store=self.store,
            blobs=self.blobs,
            workers=self.kernels,
            settings=self.settings(task),
        )

    def driver(self, task: OpenedTask) -> RoundDriver:
        info, settings = task.info, self.settings(task)
        compression = self.compressions.get(info.name)
        phases = None
        if info.shared is not None:
            phases = self._phases(info.shared, task.holder_files, compression)
        aggregation = Aggregation(
            store=self.store,
            blobs=self.blobs,
            workers=self.kernels,
            settings=settings,
            compression=compression,
            private=task.private_aggregation,
            tells_losses=not task.is_private,
            keep_contributions=task.keep_contributions,
            max_update_norm=task.max_update_norm,
            observer=self.observation,
        )
        if info.shared is not None and phases is not None:
            aggregation = SharedAggregation(
                phases=phases,
                rule=info.shared.rule,
                store=self.store,
                blobs=self.blobs,
                workers=self.kernels,
                settings=settings,
                compression=compression,
                max_update_norm=task.max_update_norm,
                observer=self.observation,
            )
        ports = DriverPorts(
            store=self.store,
            aggregation=aggregation,
            observer=self.observation,
            audit=self.audit,
            wakeup=self.wakeup,
            shared=phases,
            private=task.private,
        )
        return RoundDriver(info, rounds=self.config.rounds, ports=ports, owner=_process_name())

    def _phases(
        self, shared: SharedTask, files: HolderFiles | None, compression: RoundCompression | None
    ) -> SharedRoundPhases:
        return SharedRoundPhases(
            shared,
            pool=HolderPool(
                shared.name,
                shared.committee,
                credentials=_holder_credentials(files),
                timeout_s=shared.holder_timeout_s,
                observer=self.observation,
            ),
            store=self.store,
            blobs=self.blobs,
            workers=self.kernels,
            observer=self.observation,
            compression=compression,
        )


async def _await_store(store: RedisRoundStore) -> None:
    deadline = time.monotonic() + STORE_WAIT_S
    while True:
        try:
            await store.ping()
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(STORE_RETRY_S)
        else:
            return


def _open_engines(config: ServerConfig, resources: AsyncExitStack) -> dict[str, Engine]:
    """Open what the tasks compute with, one engine of a name for all; closed with `resources`.

    Not in a thread of its own, though it takes seconds: Ray's processes end with the thread that
    started them. Nobody is served yet.
    """
    settings = config.engines
    options = EngineOptions(
        # One core is left to the event loop: check-ins go on while models are made.
        num_threads=max(1, num_cores() - 1),
        torch_device=settings.torch_device,
        ray_address=settings.ray_address,
        ray_workers=settings.ray_workers,
    )
    engines: dict[str, Engine] = {}
    for number, task in enumerate(config.tasks, start=1):
        name = task.aggregation.engine
        if name in engines:
            continue
        try:
            engines[name] = make_engine(name, options)
        except AggregationError as error:
            msg = f"task[{number}].aggregation.engine: {error}"
            raise ConfigError(msg) from error
        resources.callback(engines[name].close)
    return engines


async def _check_durability(client: RedisClient, config: ServerConfig) -> None:
    settings = await client.settings()
    if settings.get("cluster_enabled") == "1":
        msg = "store.url: a Redis Cluster is not supported: give the URL of one server"
        raise ConfigError(msg)
    problem = durability_problem(settings, config.store.durability)
    if problem is None:
        return
    if not config.store.allow_weaker_durability:
        msg = f"store.durability: {problem}; set store.allow-weaker-durability = true to serve"
        raise ConfigError(msg)
    _log.warning("weaker_durability", problem=problem)


async def _check_installation(
    store: RedisRoundStore, blobs: BlobStore, config: ServerConfig
) -> None:
    """Refuse stores that do not belong together: a leader would miss payloads it has receipts for.

    The blob is written before the name is claimed, so that whoever reads the name finds the blob.
    """
    mine = secrets.token_hex(8)
    await blobs.put(installation_blob(mine), b"")
    name = await store.claim_installation(mine)
    if name == mine:
        return
    await blobs.delete(installation_blob(mine))
    if await blobs.size(installation_blob(name)) is None:
        msg = (
            f"store.blobs: {config.blob_url} does not hold the payloads of the round store's "
            f"installation {name}; all coordinators must share one blob store"
        )
        raise ConfigError(msg)


async def _create_task(task: OpenedTask, store: RedisRoundStore, blobs: BlobStore) -> None:
    """Store the initial model as version 1, unless the task has one."""
    info, dim = task.info, task.info.dim
    await blobs.put(model_blob(info.name, None, task.model_sha256), task.model)
    model = ModelVersion(
        version=1,
        parent=None,
        round_number=None,
        sha256=task.model_sha256,
        size_bytes=len(task.model),
        dim=dim,
        created_at_ms=int(time.time() * 1000),
        metrics={},
    )
    await store.create_task(info.name, model=model, num_rounds=info.terms.num_rounds)
    first = await store.model(info.name, 1)
    if first.dim != dim:
        msg = (
            f"task {info.name}: initial-model has {dim} elements, the task that is stored under"
            f" this name has {first.dim}: choose another name"
        )
        raise ConfigError(msg)


def _tracing(config: ServerConfig) -> Tracing:
    return configure_tracing(
        service_name="fedagg-coordinator",
        otlp_endpoint=config.observability.otlp_endpoint or None,
        sample_ratio=config.observability.trace_sample_ratio,
    )


def _credentials(tls: TlsFiles | None, *, ask_client: bool) -> grpc.ServerCredentials | None:
    """TLS of one port; `ask_client` demands a certificate of the devices' authority."""
    if tls is None:
        return None
    return grpc.ssl_server_credentials(
        [(tls.credentials.private_key_pem, tls.credentials.certificate_pem)],
        root_certificates=tls.client_ca if ask_client else None,
        require_client_auth=ask_client,
    )


def _holder_credentials(files: HolderFiles | None) -> grpc.ChannelCredentials | None:
    if files is None:
        return None
    mine = files.credentials
    return grpc.ssl_channel_credentials(
        root_certificates=files.authorities,
        private_key=None if mine is None else mine.private_key_pem,
        certificate_chain=None if mine is None else mine.certificate_pem,
    )


def _process_name() -> str:
    """A name no other process has, also after a restart with the same process id."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}"
