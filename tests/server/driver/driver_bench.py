"""Drivers that a test ticks by hand, on a real store whose clock stands still."""

import asyncio
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from monitoring.audit_logger import AuditLogger
from monitoring.metrics import Metrics
from privacy.budget import Budget, LedgerState
from server.config import RoundsConfig, TaskConfig
from server.driver.aggregation import Aggregation
from server.driver.driver import DriverPorts, RoundDriver
from server.observation.audit_trail import AuditTrail
from server.privacy.budget_gate import PrivateRounds
from server.processes.thread_pool import Workers
from server.round.blob_names import model_blob, payload_blob
from server.round.ports import (
    AdmissionVerdict,
    FinishedRound,
    Snapshot,
    Submission,
)
from server.round.state import CandidateModel, Phase, Round
from server.storage.blobs import BlobStore
from server.storage.notifier import News
from server.storage.redis_client import RedisClient
from server.storage.redis_store import RedisRoundStore
from server.task.resolving import task_info
from tests.server.round.stepping import settings_of
from updates.codec import encode_dense
from updates.vectors import decode_model, encode_model

TASK: Final = "digits"
DIM: Final = 3
CLOCK: Final = "local function now_ms() return tonumber(redis.call('GET', 'test:clock')) end"
LEASE_MS: Final = 10_000
MODEL: Final = encode_model({"w": np.zeros(DIM, np.float32)})


@dataclass
class Recorder:
    """Remembers what a driver told."""

    phases: list[Phase] = field(default_factory=list)
    finished: list[FinishedRound] = field(default_factory=list)
    leads: list[bool] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    ledgers: list[LedgerState] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)

    def new_traceparent(self, task: str, round_number: int) -> str:
        del task, round_number
        return ""

    def phase_entered(self, round_: Round, *, before: Round | None) -> None:
        del before
        self.phases.append(round_.phase)

    def round_finished(self, record: FinishedRound) -> None:
        self.finished.append(record)

    def ledger_changed(self, task: str, ledger: LedgerState) -> None:
        del task
        self.ledgers.append(ledger)

    def privacy_spent(self, task: str, *, epsilon: float, budget: Budget) -> None:
        del task, budget
        self.spent.append(epsilon)

    def leading(self, task: str, *, leads: bool) -> None:
        del task
        self.leads.append(leads)

    def span(self, name: str, round_: Round) -> AbstractContextManager[object]:
        del name, round_
        return nullcontext()

    def tick_failed(self, task: str, error: Exception) -> None:
        del task
        self.failures.append(error)

    def aggregated(self, round_: Round, **told: object) -> None:
        del round_, told


class SleepyAggregation(Aggregation):
    """Falls asleep between its work and what follows, where it is told to."""

    asleep: asyncio.Event | None = None
    wake_up: asyncio.Event | None = None
    next_clipping_norm: float | None = None

    async def aggregate(self, round_: Round) -> CandidateModel | str | None:
        outcome = await super().aggregate(round_)
        if isinstance(outcome, CandidateModel):
            outcome = replace(outcome, next_clipping_norm=self.next_clipping_norm)
        if self.asleep and self.wake_up:
            self.asleep.set()
            await self.wake_up.wait()
        return outcome


class FailingAudit(AuditTrail):
    """A disk that is full for a while."""

    failures_left = 0

    async def record(self, finished: FinishedRound) -> None:
        if self.failures_left:
            self.failures_left -= 1
            raise OSError("no space left on device")
        await super().record(finished)


@dataclass(kw_only=True)
class Process:
    """One coordinator, as far as driving goes."""

    driver: RoundDriver
    observer: Recorder
    audit: FailingAudit
    aggregation: SleepyAggregation

    async def tick_until_idle(self) -> int:
        ticks = 0
        while await self.driver.tick():
            ticks += 1
            assert ticks < 50, "the driver never comes to rest"
        return ticks


@dataclass(kw_only=True)
class Bench:
    """What all processes share."""

    client: RedisClient
    store: RedisRoundStore
    blobs: BlobStore
    workers: Workers
    folder: Path
    task: TaskConfig
    private: PrivateRounds | None = None

    def process(self, owner: str) -> Process:
        observer = Recorder()
        aggregation = SleepyAggregation(
            admission=self.store,
            ledger=self.store,
            registry=self.store,
            blobs=self.blobs,
            workers=self.workers,
            settings=settings_of(),
            observer=observer,
        )
        audit = FailingAudit(
            AuditLogger(self.folder / "audit.jsonl"),
            self.workers,
            Metrics.declare(CollectorRegistry()),
        )
        driver = RoundDriver(
            task_info(self.task, dim=DIM),
            rounds=RoundsConfig(lease_ttl_s=LEASE_MS / 1000, poll_interval_s=0.01),
            ports=DriverPorts(
                rounds=self.store,
                admission=self.store,
                ledger=self.store,
                registry=self.store,
                aggregation=aggregation,
                observer=observer,
                audit=audit,
                wakeup=News(),
                private=self.private,
            ),
            owner=owner,
        )
        return Process(driver=driver, observer=observer, audit=audit, aggregation=aggregation)

    async def advance(self, ms: int) -> None:
        await self.client.command("INCRBY", "test:clock", ms)

    async def offer(self, *devices: str, check_in_id: str = "c1") -> None:
        for device in devices:
            await self.store.check_in(
                TASK, device_id=device, check_in_id=check_in_id, ttl_ms=10**6, wanted=2
            )

    async def admit(self, device: str, value: float, *, round_number: int = 1) -> None:
        """A payload in the blob store, admitted."""
        payload = encode_dense(np.full(DIM, value, np.float32))
        digest = xxhash.xxh3_128_digest(payload)
        key = payload_blob(TASK, round_number, device_id=device, submission_id="s1", digest=digest)
        await self.blobs.put(key, payload)
        submission = Submission(
            task=TASK,
            round_number=round_number,
            device_id=device,
            submission_id="s1",
            model_version=(await self.snapshot()).current_version,
            num_samples=1,
            payload_bytes=len(payload),
            digest=digest,
            loss_before=None,
            loss_after=None,
            inline_payload=None,
        )
        (admission,) = await self.store.admit([submission])
        assert admission.verdict is AdmissionVerdict.ACCEPTED

    async def collecting(self, process: Process, *, round_number: int = 1) -> None:
        """Bring `process` to a round whose two contributions are in."""
        await process.tick_until_idle()
        await self.offer("d1", "d2", check_in_id=f"c{round_number}")
        await process.tick_until_idle()
        await self.admit("d1", 1.0, round_number=round_number)
        await self.admit("d2", 3.0, round_number=round_number)

    async def snapshot(self) -> Snapshot:
        return await self.store.snapshot(TASK)

    async def round(self) -> Round:
        round_ = (await self.snapshot()).round
        assert round_ is not None
        return round_

    async def weights(self) -> NDArray[np.float32]:
        model = await self.store.model(TASK, (await self.snapshot()).current_version)
        tensors, _ = decode_model(
            await self.blobs.get(model_blob(TASK, model.round_number, model.sha256))
        )
        return tensors["w"]

    def audit_lines(self) -> int:
        return len(self.audited())

    def audited(self) -> list[dict[str, Any]]:
        path = self.folder / "audit.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]
