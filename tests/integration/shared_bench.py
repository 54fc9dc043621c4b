"""Coordinators of shared rounds, ticked by hand; real holders, a clock that stands still."""

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import xxhash
from prometheus_client import CollectorRegistry

from monitoring.audit_logger import AuditLogger
from monitoring.metrics import Metrics
from privacy.budget import Budget, LedgerState
from security.shared_round.terms.parameters import RoundParameters
from server.config import RoundsConfig, TaskConfig
from server.config.durability import Durability
from server.config.sharing_config import SharingConfig
from server.driver.driver import DriverPorts, RoundDriver
from server.driver.shared_aggregation import SharedAggregation
from server.observation.audit_trail import AuditTrail
from server.privacy.budget_gate import PrivateRounds
from server.processes.thread_pool import Workers
from server.round.blob_names import model_blob
from server.round.ports import AdmissionVerdict, FinishedRound, ModelVersion, Submission
from server.round.state import Phase, Round
from server.sharing.pool import HolderPool
from server.sharing.shared_rounds import SharedRoundPhases
from server.storage.blobs import BlobStore
from server.storage.notifier import News
from server.storage.redis_client import RedisClient
from server.storage.redis_store import RedisRoundStore
from server.task.resolving import shared_task, task_info
from tests.integration.shared_committee import Holders, Vector, mean_of, running, update_of
from tests.server.round.stepping import settings_of
from updates.vectors import decode_model, encode_model

TASK: Final = "digits"
DIM: Final = 24
DEVICES: Final = ("d1", "d2", "d3", "d4")
CLOCK: Final = "local function now_ms() return tonumber(redis.call('GET', 'test:clock')) end"
LEASE_MS: Final = 10_000
HOLDER_TIMEOUT_MS: Final = 5_000
MAX_WAIT_MS: Final = 60_000


@dataclass
class Recorder:
    """Remembers what a coordinator told."""

    phases: list[Phase] = field(default_factory=list)
    finished: list[FinishedRound] = field(default_factory=list)
    relayed: list[tuple[int, str]] = field(default_factory=list)
    statements: list[tuple[int, str]] = field(default_factory=list)

    def new_traceparent(self, task: str, round_number: int) -> str:
        del task, round_number
        return ""

    def phase_entered(self, round_: Round, *, before: Round | None) -> None:
        del before
        self.phases.append(round_.phase)

    def round_finished(self, record: FinishedRound) -> None:
        self.finished.append(record)

    def leading(self, task: str, *, leads: bool) -> None:
        del task, leads

    def span(self, name: str, round_: Round) -> AbstractContextManager[object]:
        del name, round_
        return nullcontext()

    def tick_failed(self, task: str, error: Exception) -> None:
        raise AssertionError(task) from error

    def aggregated(self, round_: Round, **told: object) -> None:
        del round_, told

    def holder_reachable(self, task: str, holder: int, *, reachable: bool) -> None:
        del task, holder, reachable

    def holder_refused(self, task: str, holder: int, reason: str) -> None:
        del task, holder, reason

    def share_relayed(self, task: str, holder: int, outcome: str) -> None:
        del task
        self.relayed.append((holder, outcome))

    def ledger_changed(self, task: str, ledger: LedgerState) -> None:
        del task, ledger

    def privacy_spent(self, task: str, *, epsilon: float, budget: Budget) -> None:
        del task, epsilon, budget

    def opened(self, task: str, holder: int, kind: str) -> None:
        del task
        self.statements.append((holder, kind))


@dataclass(kw_only=True)
class Process:
    """One coordinator, as far as driving goes."""

    driver: RoundDriver
    phases: SharedRoundPhases
    pool: HolderPool
    observer: Recorder

    async def tick_until_idle(self) -> None:
        for _ in range(50):
            if not await self.driver.tick():
                return
        raise AssertionError("the driver never comes to rest")


@dataclass(kw_only=True)
class Bench:
    """What all coordinators share, and the committee."""

    client: RedisClient
    store: RedisRoundStore
    blobs: BlobStore
    workers: Workers
    folder: Path
    task: TaskConfig
    holders: Holders
    dim: int = DIM
    private: PrivateRounds | None = None
    processes: list[Process] = field(default_factory=list)

    def process(self, owner: str) -> Process:
        observer = Recorder()
        shared = shared_task(self.task, self.holders.committee)
        pool = HolderPool(
            TASK,
            self.holders.committee,
            credentials=None,
            timeout_s=HOLDER_TIMEOUT_MS / 1000,
            observer=observer,
        )
        phases = SharedRoundPhases(
            shared,
            pool=pool,
            admission=self.store,
            registry=self.store,
            blobs=self.blobs,
            workers=self.workers,
            observer=observer,
        )
        driver = RoundDriver(
            task_info(self.task, dim=self.dim, shared=shared),
            rounds=RoundsConfig(lease_ttl_s=LEASE_MS / 1000, poll_interval_s=0.01),
            ports=DriverPorts(
                rounds=self.store,
                admission=self.store,
                ledger=self.store,
                registry=self.store,
                aggregation=SharedAggregation(
                    phases=phases,
                    rule="mean",
                    rounds=self.store,
                    admission=self.store,
                    ledger=self.store,
                    registry=self.store,
                    blobs=self.blobs,
                    workers=self.workers,
                    settings=settings_of(),
                    observer=observer,
                ),
                observer=observer,
                audit=AuditTrail(
                    AuditLogger(self.folder / "audit.jsonl"),
                    self.workers,
                    Metrics.declare(CollectorRegistry()),
                ),
                wakeup=News(),
                shared=phases,
                private=self.private,
            ),
            owner=owner,
        )
        process = Process(driver=driver, phases=phases, pool=pool, observer=observer)
        self.processes.append(process)
        return process

    async def advance(self, ms: int) -> None:
        await self.client.command("INCRBY", "test:clock", ms)

    async def round(self) -> Round:
        round_ = (await self.store.snapshot(TASK)).round
        assert round_ is not None
        return round_

    async def params(self) -> RoundParameters:
        shared = (await self.round()).shared
        assert shared is not None
        return RoundParameters.from_bytes(shared.params_bytes)

    async def select(self, process: Process, check_in_id: str = "c1") -> RoundParameters:
        """Open a round for all devices."""
        await process.tick_until_idle()
        for device in DEVICES:
            await self.store.check_in(
                TASK, device_id=device, check_in_id=check_in_id, ttl_ms=10**6, wanted=4
            )
        await process.driver.tick()
        return await self.params()

    async def admit(
        self, device: str, bundle: bytes, *, round_number: int = 1, model_version: int = 1
    ) -> AdmissionVerdict:
        """A bundle in the round store, admitted."""
        submission = Submission(
            task=TASK,
            round_number=round_number,
            device_id=device,
            submission_id="s1",
            model_version=model_version,
            num_samples=1,
            payload_bytes=len(bundle),
            digest=xxhash.xxh3_128_digest(bundle),
            loss_before=None,
            loss_after=None,
            inline_payload=bundle,
        )
        return (await self.store.admit([submission]))[0].verdict

    async def collected(self, process: Process, devices: Sequence[str] = DEVICES) -> None:
        """Bring a coordinator to a round whose updates are in, and holders to their keys."""
        assert await process.pool.exchange_keys()
        params = await self.select(process)
        for device in devices:
            bundle = self.holders.sealed(params, device, update_of(device, self.dim))
            assert await self.admit(device, bundle) is AdmissionVerdict.ACCEPTED

    async def step(self, version: int = 2) -> Vector:
        weights = []
        for number in (version - 1, version):
            model = await self.store.model(TASK, number)
            tensors, _ = decode_model(
                await self.blobs.get(model_blob(TASK, model.round_number, model.sha256))
            )
            weights.append(tensors["w"])
        change: Vector = weights[1] - weights[0]
        return change

    async def drive(self, process: Process, *, ms: int = HOLDER_TIMEOUT_MS + 1) -> None:
        """Let a coordinator work, waiting as long as it waits for everybody."""
        await process.tick_until_idle()
        await self.advance(ms)
        await process.tick_until_idle()

    async def published(self, devices: Sequence[str] = DEVICES) -> None:
        snapshot = await self.store.snapshot(TASK)
        assert snapshot.current_version == 2, snapshot.round
        expected = mean_of({device: update_of(device, self.dim) for device in devices})
        np.testing.assert_allclose(await self.step(), expected, rtol=0, atol=1e-7)


@asynccontextmanager
async def bench_of(
    folder: Path,
    url: str,
    *,
    threshold: int,
    num_holders: int,
    limits: object = None,
    dim: int = DIM,
    private: PrivateRounds | None = None,
    **sharing: object,
) -> AsyncIterator[Bench]:
    policy = {"degraded": ["wait", "abort", "grouped", "unchecked"]}
    async with running(
        folder / "c",
        threshold=threshold,
        holders=num_holders,
        policy=policy,
        limits=limits,  # type: ignore[arg-type]  # among settings of any kind
    ) as holders:
        client = RedisClient(url, clock=CLOCK)
        settings = {
            "committee": holders.path,
            "checks": "norm",
            "sketch-dim": 64,
            "min-members": 2,
            "holder-timeout-s": HOLDER_TIMEOUT_MS / 1000,
            "max-wait-s": MAX_WAIT_MS / 1000,
            **sharing,
        }
        task = TaskConfig.model_validate(
            {
                "name": TASK,
                "initial-model": folder / "unused",
                "mode": "shared",
                "num-rounds": 3,
                "reporting-goal": len(DEVICES),
                "min-contributions": 2,
                "over-selection": 1.0,
                "plan": {"clipping-norm": 1.0},
                "sharing": SharingConfig.model_validate(settings),
            }
        )
        found = Bench(
            client=client,
            store=RedisRoundStore(client),
            blobs=BlobStore(str(folder / "blobs"), durability=Durability.PROCESS, num_threads=2),
            workers=Workers("test", threads=1),
            folder=folder,
            task=task,
            holders=holders,
            dim=dim,
            private=private,
        )
        await client.command("SET", "test:clock", 1_000_000)
        file = encode_model({"w": np.zeros(dim, np.float32)})
        sha256 = hashlib.sha256(file).hexdigest()
        await found.blobs.put(model_blob(TASK, None, sha256), file)
        first = ModelVersion(
            version=1,
            parent=None,
            round_number=None,
            sha256=sha256,
            size_bytes=len(file),
            dim=dim,
            created_at_ms=0,
            metrics={},
        )
        await found.store.create_task(TASK, model=first, num_rounds=3)
        try:
            yield found
        finally:
            for process in found.processes:
                await process.phases.close()
            found.workers.close()
            found.blobs.close()
            await client.close()
