"""The composition root of a share holder: one process, one member of one committee."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from monitoring.logs import get_logger
from monitoring.metrics import Metrics, create_registry
from monitoring.rpc_meter import RpcMeter
from protos.fedagg.v1 import share_holder_pb2_grpc
from protos.wire import MAX_HOLDER_MESSAGE_BYTES
from server.config import ConfigError
from server.config.holder_config import HolderConfig
from server.holder.gate import Gate
from server.holder.metrics import HolderMetrics
from server.holder.preparation import HolderTls, prepare_holder
from server.holder.rounds import HolderRounds, RoundsParts
from server.holder.rpc import METHODS, SERVICE_NAME, HolderInterceptor
from server.holder.service import ServiceParts, ShareHolderService
from server.holder.shares.intake import Intake, IntakeParts, OpenedFrames
from server.holder.shares.stored_shares import StoredShares
from server.holder.statements.keyring import Keyring
from server.holder.statements.noise import NoiseDealer
from server.holder.storage.holder_storage import HolderStorage
from server.holder.storage.membership import HolderSelf, KnownRounds
from server.processes.thread_pool import Workers
from server.wire.http import HttpServer
from server.wire.probes import create_metrics_app

DRAIN_S: Final = 5.0

OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # a second process on the same address is a mistake
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 256 << 10),
    ("grpc.max_send_message_length", MAX_HOLDER_MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)

_log = get_logger(__name__)


class HolderServer:
    """A share holder that serves; `start` once, `stop` once.

    Everything it has answered is in its folder: a holder built again on the same folder goes on
    where this one ended, however it ended.

    Attributes:
        registry: its metrics.
    """

    def __init__(
        self,
        config: HolderConfig,
        service: ShareHolderService,
        *,
        tls: HolderTls | None,
        gate: Gate,
        registry: CollectorRegistry,
    ) -> None:
        self._config = config
        self._credentials = _credentials(tls)
        self.registry = registry
        interceptor = HolderInterceptor(
            gate,
            meter=RpcMeter(Metrics.declare(registry), METHODS),
            log=get_logger("server.holder.rpc"),
        )
        most = ("grpc.max_receive_message_length", gate.max_request_bytes)
        self._server = grpc.aio.server(interceptors=[interceptor], options=(*OPTIONS, most))
        share_holder_pb2_grpc.add_ShareHolderServicer_to_server(service, self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._http: list[HttpServer] = []
        self._resources = AsyncExitStack()
        self.address = ""

    def own(self, close: Callable[[], None]) -> None:
        """Call `close` when the server has stopped; the last one owned is closed first."""
        self._resources.callback(close)

    async def start(self) -> None:
        """Listen. `address` is where, port 0 resolved.

        Raises:
            OSError, RuntimeError: if an address cannot be listened on.
        """
        listen = self._config.listen
        credentials = self._credentials
        port = (
            self._server.add_insecure_port(listen.grpc)
            if credentials is None
            else self._server.add_secure_port(listen.grpc, credentials)
        )
        self.address = f"{listen.grpc.rpartition(':')[0]}:{port}"
        if listen.http:
            self._http.append(HttpServer(_health_app(), listen.http))
        if listen.metrics:
            self._http.append(HttpServer(create_metrics_app(self.registry), listen.metrics))
        await self._server.start()
        await asyncio.gather(*(http.start() for http in self._http))
        for name in ("", SERVICE_NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        if not self._config.tls.proves_callers:
            _log.warning("open_to_every_caller", address=self.address)
        _log.info("holder_started", address=self.address, index=self._config.holder.index)

    async def stop(self, drain_s: float = DRAIN_S) -> None:
        """Answer what is under way, then close everything."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(drain_s)
        await asyncio.gather(*(http.stop() for http in self._http))
        await self._resources.aclose()
        _log.info("holder_stopped", index=self._config.holder.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A share holder without its network: everything blocks. For any number of threads."""

    me: HolderSelf
    tls: HolderTls | None
    storage: HolderStorage
    keyring: Keyring
    intake: Intake
    rounds: HolderRounds
    dealer: NoiseDealer


def open_holder(config: HolderConfig, *, now_s: Callable[[], float] = time.time) -> Holder:
    """Read the holder's files and open its folder. The caller closes `storage`.

    Args:
        config: what was configured.
        now_s: the clock that device certificates are held against, seconds since the Unix epoch.

    Raises:
        ConfigError: if a file cannot be used, or the folder belongs to another holder.
        StoreUnavailable: if the folder cannot be used.
    """
    prepared = prepare_holder(config, now_s=now_s)
    me = prepared.me
    storage, keyring = _open_folder(config, me)
    known, frames, limits = KnownRounds(storage), OpenedFrames(me), config.limits
    intake = Intake(
        IntakeParts(me=me, rounds=known, storage=storage, inline_max_bytes=limits.inline_max_bytes),
        frames,
    )
    return Holder(
        me=me,
        tls=prepared.tls,
        storage=storage,
        keyring=keyring,
        intake=intake,
        rounds=HolderRounds(
            RoundsParts(
                me=me,
                policy=config.policy,
                storage=storage,
                known=known,
                keyring=keyring,
                shares=StoredShares(me, storage, frames),
                frames=frames,
                max_open_rounds=limits.open_rounds,
                retention_s=limits.retention_s,
            )
        ),
        dealer=NoiseDealer(me, storage, known),
    )


def build_holder(config: HolderConfig, *, now_s: Callable[[], float] = time.time) -> HolderServer:
    """Open the holder and wire its service. Call it on the loop that will serve.

    Args:
        config: what was configured.
        now_s: the clock that device certificates are held against, seconds since the Unix epoch.

    Raises:
        ConfigError: if a file cannot be used, or the folder belongs to another holder.
        StoreUnavailable: if the folder cannot be used.
    """
    holder = open_holder(config, now_s=now_s)
    registry = create_registry()
    files = Workers("holder-files", threads=config.limits.threads)
    compute = Workers("holder-compute", threads=config.limits.threads)
    gate = Gate(config)
    service = ShareHolderService(
        ServiceParts(
            peers=gate.peers,
            me=holder.me,
            keyring=holder.keyring,
            intake=holder.intake,
            rounds=holder.rounds,
            dealer=holder.dealer,
            files=files,
            compute=compute,
            limits=config.limits,
            metrics=HolderMetrics.declare(registry),
        )
    )
    server = HolderServer(config, service, tls=holder.tls, gate=gate, registry=registry)
    # Closed the other way round: threads that still work need the storage.
    for close in (holder.storage.close, files.close, compute.close):
        server.own(close)
    return server


def _open_folder(config: HolderConfig, me: HolderSelf) -> tuple[HolderStorage, Keyring]:
    storage = HolderStorage(config.holder.data_dir, durability=config.holder.durability)
    try:
        _claim(storage, me)
        return storage, Keyring(me.secrets, me.committee, me.index, storage)
    except BaseException:
        storage.close()
        raise


def _claim(storage: HolderStorage, me: HolderSelf) -> None:
    """Refuse a folder of another holder or committee: what it promised there would be forgotten."""
    mine = (me.committee.sha256, me.index)
    found = storage.write(lambda ledger: ledger.claim(*mine))
    if found != mine:
        msg = f"holder.data-dir belongs to holder {found[1]} of committee {found[0].hex()}"
        raise ConfigError(msg)


def _credentials(tls: HolderTls | None) -> grpc.ServerCredentials | None:
    if tls is None:
        return None
    return grpc.ssl_server_credentials(
        [(tls.credentials.private_key_pem, tls.credentials.certificate_pem)],
        root_certificates=tls.client_ca,
        require_client_auth=tls.client_ca is not None,
    )


def _health_app() -> Starlette:
    """Return the application of the health port: it answers where the loop does."""

    async def healthy(_: Request) -> JSONResponse:
        return JSONResponse({"ready": True})

    return Starlette(routes=[Route("/health", healthy), Route("/ready", healthy)])
