"""The composition root: the only module that names concrete classes.

`build_server` turns a configuration into a coordinator. Everyone else receives ports.
"""

import asyncio
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc

from aggregators.config import AggregatorConfig
from aggregators.engines import Engine, EngineOptions, make_engine
from aggregators.errors import AggregationError
from aggregators.kernels.threads import num_cores
from aggregators.warm_up import warm_up
from monitoring.audit_logger import AuditLogger
from monitoring.health import Health, run_probes
from monitoring.logs import get_logger
from monitoring.metrics import Metrics, create_registry
from monitoring.rpc_meter import RpcMeter
from monitoring.tracing import Tracing, configure_tracing
from security.credentials import Credentials
from security.errors import SecurityError
from security.shared_round.committee import Committee, load_committee
from server.aggregation_settings import (
    aggregation_settings,
    aggregator_config,
    private_settings,
)
from server.compressing import RoundCompression, task_compression
from server.config import ConfigError, ServerConfig, TaskConfig
from server.config.sharing_config import SharingConfig
from server.errors import StoreUnavailable
from server.http import HttpServer
from server.kernels import Workers
from server.observation import AuditTrail, Observation
from server.private_loader import load_private_task
from server.production_server import ProductionFederatedServer, ServerParts
from server.round.aggregation import Aggregation
from server.round.candidate import AggregationSettings, layer_sizes
from server.round.driver import DriverPorts, RoundDriver
from server.round.replay import Replayer
from server.services.admin_api import create_admin_app, create_metrics_app
from server.services.admin_backend import StoreBackend
from server.services.device_service import FederationService, ServicePorts
from server.services.enrollment_service import EnrollmentAuthority, EnrollmentService
from server.services.identity import PeerIdentity
from server.services.models import ModelCatalog
from server.services.plans import RoundPlans
from server.services.rpc import METHODS, ServiceInterceptor
from server.services.submissions import Submissions
from server.services.uploads import Uploads
from server.sharing.planning import SharedTask
from server.sharing.pool import HolderPool
from server.sharing.shared_aggregation import SharedAggregation
from server.sharing.shared_rounds import SharedRoundPhases
from server.storage.blobs import BlobStore
from server.storage.embedded import durability_problem
from server.storage.keys import installation_blob, model_blob
from server.storage.notifier import News, Notifier
from server.storage.ports import ModelVersion
from server.storage.redis_client import SERVER_CLOCK, RedisClient
from server.storage.redis_store import RedisRoundStore
from server.tasks import TaskDirectory, TaskInfo, noised_dim, task_info
from updates.errors import CompressionError, ModelError

if TYPE_CHECKING:
    from server.private_task import PrivateTask

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
    rules = {task.name: aggregator_config(task) for task in config.tasks}
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
    for rule in rules.values():
        await kernels.run(warm_up, rule)
    files = Workers("files", threads=FILE_THREADS)
    resources.callback(files.close)
    tracing = _tracing(config)
    resources.callback(tracing.shutdown)
    observation = Observation(
        metrics=metrics, log=get_logger("server.round"), tracer=tracing.tracer("server.round")
    )
    await _check_installation(store, blobs, config)
    accountants = Workers("accountant", threads=1)
    resources.callback(accountants.close)
    created = [await _create_task(task, store, blobs, accountants) for task in config.tasks]
    tasks = TaskDirectory([info for info, _ in created])
    private = {info.name: found for info, found in created if found is not None}
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
        private=private,
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
            replayers={
                task.name: wiring.replayer(tasks[task.name], rules[task.name])
                for task in config.tasks
            },
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
                _authority(config), ledger=store, metrics=metrics, now_s=time.time
            ),
            interceptor=ServiceInterceptor(
                meter=RpcMeter(metrics, METHODS),
                log=get_logger("server.rpc"),
                tracer=tracing.tracer("server.rpc") if tracing.is_on else None,
            ),
            drivers=[wiring.driver(tasks[task.name], rules[task.name]) for task in config.tasks],
            notifier=notifier,
            http=HttpServer(admin, config.listen.http),
            metrics=HttpServer(create_metrics_app(registry), config.listen.metrics),
            credentials=_credentials(config, ask_client=True),
            enrollment_credentials=_credentials(config, ask_client=False),
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
    private: Mapping[str, "PrivateTask"]
    observation: Observation
    audit: AuditTrail
    wakeup: News
    engines: Mapping[str, Engine]

    def settings(self, info: TaskInfo, rule: AggregatorConfig) -> AggregationSettings:
        private = self.private.get(info.name)
        return aggregation_settings(
            info.config,
            rule,
            dim=info.summed_dim,
            privacy=None if private is None else private.first_round,
            engine=self.engines[info.config.aggregation.engine],
        )

    def replayer(self, info: TaskInfo, rule: AggregatorConfig) -> Replayer:
        return Replayer(
            store=self.store,
            blobs=self.blobs,
            workers=self.kernels,
            settings=self.settings(info, rule),
        )

    def driver(self, info: TaskInfo, rule: AggregatorConfig) -> RoundDriver:
        task = info.config
        private = self.private.get(info.name)
        settings = self.settings(info, rule)
        compression = self.compressions.get(info.name)
        phases = None if info.shared is None else self._phases(info.shared, compression)
        aggregation = Aggregation(
            store=self.store,
            blobs=self.blobs,
            workers=self.kernels,
            settings=settings,
            compression=compression,
            private=private_settings(task),
            tells_losses=not task.privacy.is_on,
            keep_contributions=task.keep_contributions,
            max_update_norm=task.validation.max_update_norm,
            observer=self.observation,
        )
        if phases is not None:
            aggregation = SharedAggregation(
                phases=phases,
                rule=task.aggregation.rule,
                store=self.store,
                blobs=self.blobs,
                workers=self.kernels,
                settings=settings,
                compression=compression,
                max_update_norm=task.validation.max_update_norm,
                observer=self.observation,
            )
        ports = DriverPorts(
            store=self.store,
            aggregation=aggregation,
            observer=self.observation,
            audit=self.audit,
            wakeup=self.wakeup,
            shared=phases,
            private=private,
        )
        return RoundDriver(info, rounds=self.config.rounds, ports=ports, owner=_process_name())

    def _phases(
        self, shared: SharedTask, compression: RoundCompression | None
    ) -> SharedRoundPhases:
        sharing = shared.config.sharing
        return SharedRoundPhases(
            shared,
            pool=HolderPool(
                shared.config.name,
                shared.committee,
                credentials=_holder_credentials(sharing),
                timeout_s=sharing.holder_timeout_s,
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
    for task in config.tasks:
        name = task.aggregation.engine
        if name in engines:
            continue
        try:
            engines[name] = make_engine(name, options)
        except AggregationError as error:
            msg = f"task {task.name}, aggregation: {error}"
            raise ConfigError(msg) from error
        resources.callback(engines[name].close)
    return engines


async def _check_durability(client: RedisClient, config: ServerConfig) -> None:
    settings = await client.settings()
    if settings.get("cluster_enabled") == "1":
        msg = "store: a Redis Cluster is not supported; give the URL of one server"
        raise ConfigError(msg)
    problem = durability_problem(settings, config.store.durability)
    if problem is None:
        return
    if not config.store.allow_weaker_durability:
        msg = f"store: {problem}; set store.allow-weaker-durability = true to serve all the same"
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
            f"store: {config.blob_url} does not hold the payloads of the round store's "
            f"installation {name}; all coordinators must share one blob store"
        )
        raise ConfigError(msg)


async def _create_task(
    config: TaskConfig, store: RedisRoundStore, blobs: BlobStore, accountants: Workers
) -> "tuple[TaskInfo, PrivateTask | None]":
    """Store the initial model as version 1, unless the task has one."""
    try:
        data = await asyncio.to_thread(config.initial_model.read_bytes)
        sizes = layer_sizes(data)
    except (OSError, ModelError) as error:
        msg = f"task {config.name}, initial-model: {error}"
        raise ConfigError(msg) from error
    dim = sum(sizes)
    sha256 = hashlib.sha256(data).hexdigest()
    await blobs.put(model_blob(config.name, sha256), data)
    model = ModelVersion(
        version=1,
        parent=None,
        round_number=None,
        sha256=sha256,
        size_bytes=len(data),
        dim=dim,
        created_at_ms=int(time.time() * 1000),
        metrics={},
    )
    await store.create_task(config.name, model=model, num_rounds=config.num_rounds)
    first = await store.model(config.name, 1)
    if first.dim != dim:
        msg = (
            f"task {config.name}: the initial model has {dim} elements, the task that is stored "
            f"under this name has {first.dim}; choose another name"
        )
        raise ConfigError(msg)
    try:
        compression = task_compression(config, sizes)
        private = None
        if config.privacy.is_on:
            private = await accountants.run(
                load_private_task,
                config,
                dim=noised_dim(dim, compression),
                workers=accountants,
            )
        info = task_info(
            config,
            dim=dim,
            shared=await _shared_task(config),
            compression=compression,
            privacy=None if private is None else private.first_round,
        )
    except SecurityError as error:
        msg = f"task {config.name}, sharing: {error}"
        raise ConfigError(msg) from error
    except CompressionError as error:
        msg = f"task {config.name}, compression: {error}"
        raise ConfigError(msg) from error
    return info, private


async def _shared_task(config: TaskConfig) -> SharedTask | None:
    if config.sharing.committee is None:
        return None
    data = await asyncio.to_thread(_read, config.sharing.committee)
    committee: Committee = load_committee(data)
    nowhere = [holder.name for holder in committee.holders if not holder.address]
    if nowhere:
        msg = f"task {config.name}, sharing: the committee has no address of {', '.join(nowhere)}"
        raise ConfigError(msg)
    return SharedTask(committee=committee, config=config)


def _tracing(config: ServerConfig) -> Tracing:
    return configure_tracing(
        service_name="fedagg-coordinator",
        otlp_endpoint=config.observability.otlp_endpoint or None,
        sample_ratio=config.observability.trace_sample_ratio,
    )


def _authority(config: ServerConfig) -> EnrollmentAuthority | None:
    settings = config.enrollment
    if not (settings.ca_certificate and settings.ca_private_key and settings.token_key):
        return None
    return EnrollmentAuthority(
        credentials=Credentials(
            certificate_pem=_read(settings.ca_certificate),
            private_key_pem=_read(settings.ca_private_key),
        ),
        token_key=settings.token_key.get_secret_value().encode(),
        certificate_lifetime_s=settings.certificate_days * 86_400,
    )


def _credentials(config: ServerConfig, *, ask_client: bool) -> grpc.ServerCredentials | None:
    """TLS of one port; `ask_client` demands a certificate of the devices' authority."""
    tls = config.tls
    if not (tls.certificate and tls.private_key and tls.client_ca):
        return None
    return grpc.ssl_server_credentials(
        [(_read(tls.private_key), _read(tls.certificate))],
        root_certificates=_read(tls.client_ca) if ask_client else None,
        require_client_auth=ask_client,
    )


def _holder_credentials(sharing: SharingConfig) -> grpc.ChannelCredentials | None:
    if sharing.holders_ca is None:
        return None
    certificate, key = sharing.holders_certificate, sharing.holders_private_key
    return grpc.ssl_channel_credentials(
        root_certificates=_read(sharing.holders_ca),
        private_key=None if key is None else _read(key),
        certificate_chain=None if certificate is None else _read(certificate),
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        msg = f"{path}: {error.strerror}"
        raise ConfigError(msg) from error


def _process_name() -> str:
    """A name no other process has, also after a restart with the same process id."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}"
