"""Makes the driver of each task out of what a coordinator has prepared."""

import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace

import grpc

from aggregators.engines.engine import Engine
from server.compression.round_compression import RoundCompression
from server.config import ServerConfig
from server.driver.aggregation import Aggregation
from server.driver.driver import DriverPorts, RoundDriver
from server.driver.shared_aggregation import SharedAggregation
from server.models.replay import Replayer
from server.observation.audit_trail import AuditTrail
from server.observation.observation import Observation
from server.processes.thread_pool import Workers
from server.round.candidate import AggregationSettings
from server.sharing.pool import HolderPool
from server.sharing.shared_rounds import SharedRoundPhases
from server.sharing.shared_task import SharedTask
from server.storage.blobs import BlobStore
from server.storage.notifier import News
from server.storage.redis_store import RedisRoundStore
from server.task.preparation import HolderFiles, PreparedTask


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverWiring:
    """What the drivers of all tasks share, and how a task's driver is made of it."""

    config: ServerConfig
    store: RedisRoundStore
    blobs: BlobStore
    kernels: Workers
    compressions: Mapping[str, RoundCompression]
    observation: Observation
    audit: AuditTrail
    wakeup: News
    engines: Mapping[str, Engine]

    def _settings(self, task: PreparedTask) -> AggregationSettings:
        return replace(task.aggregation, engine=self.engines[task.engine])

    def replayer(self, task: PreparedTask) -> Replayer:
        """Make what builds a task's versions again."""
        return Replayer(
            registry=self.store,
            blobs=self.blobs,
            workers=self.kernels,
            settings=self._settings(task),
        )

    def driver(self, task: PreparedTask) -> RoundDriver:
        """Make what moves a task's rounds on."""
        info = task.info
        phases = None
        if info.shared is not None:
            phases = self._phases(info.shared, task.holder_files)
        ports = DriverPorts(
            rounds=self.store,
            admission=self.store,
            ledger=self.store,
            registry=self.store,
            aggregation=self._aggregation(task, phases),
            observer=self.observation,
            audit=self.audit,
            wakeup=self.wakeup,
            shared=phases,
            private=task.private,
        )
        return RoundDriver(info, rounds=self.config.rounds, ports=ports, owner=_process_name())

    def _aggregation(self, task: PreparedTask, phases: SharedRoundPhases | None) -> Aggregation:
        info = task.info
        if info.shared is not None and phases is not None:
            return SharedAggregation(
                phases=phases,
                rule=info.shared.rule,
                rounds=self.store,
                admission=self.store,
                ledger=self.store,
                registry=self.store,
                blobs=self.blobs,
                workers=self.kernels,
                settings=self._settings(task),
                compression=self.compressions.get(info.name),
                max_update_norm=task.max_update_norm,
                observer=self.observation,
            )
        return Aggregation(
            admission=self.store,
            ledger=self.store,
            registry=self.store,
            blobs=self.blobs,
            workers=self.kernels,
            settings=self._settings(task),
            compression=self.compressions.get(info.name),
            private=task.private_aggregation,
            tells_losses=not task.is_private,
            keep_contributions=task.keep_contributions,
            max_update_norm=task.max_update_norm,
            observer=self.observation,
        )

    def _phases(self, shared: SharedTask, files: HolderFiles | None) -> SharedRoundPhases:
        return SharedRoundPhases(
            shared,
            pool=HolderPool(
                shared.name,
                shared.committee,
                credentials=_holder_credentials(files),
                timeout_s=shared.holder_timeout_s,
                observer=self.observation,
            ),
            admission=self.store,
            registry=self.store,
            blobs=self.blobs,
            workers=self.kernels,
            observer=self.observation,
            compression=self.compressions.get(shared.name),
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
    """Make a name no other process has, also after a restart with the same process id."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}"
