"""The driver against a real store: who leads, what a crash leaves, and what outlives a defect.

The drivers are ticked by hand and the store's clock stands still, so that a process may die or fall
asleep between any two steps.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import xxhash
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from aggregators.config import AggregatorConfig
from aggregators.vectors import decode_model, encode_model
from compression.codec import encode_dense
from monitoring.audit_logger import AuditLogger
from monitoring.metrics import Metrics
from server.config import RoundsConfig, TaskConfig
from server.errors import StoreUnavailable
from server.kernels import Workers
from server.observation import AuditTrail
from server.round import driver as driver_module
from server.round.aggregation import Aggregation
from server.round.candidate import AggregationSettings
from server.round.driver import DriverPorts, RoundDriver
from server.round.state import CandidateModel, Phase, Round
from server.storage.blobs import BlobStore
from server.storage.keys import model_blob, payload_blob, task_prefix
from server.storage.notifier import News
from server.storage.ports import (
    AdmissionVerdict,
    Durability,
    FinishedRound,
    ModelVersion,
    Snapshot,
    Submission,
)
from server.storage.redis_client import RedisClient
from server.storage.redis_store import RedisRoundStore
from server.tasks import task_info

TASK: Final = "digits"
DIM: Final = 3
CLOCK: Final = "local function now_ms() return tonumber(redis.call('GET', 'test:clock')) end"
LEASE_MS: Final = 10_000
DEADLINE_S: Final = 20.0
MODEL: Final = encode_model({"w": np.zeros(DIM, np.float32)})


@dataclass
class Recorder:
    """Remembers what a driver told."""

    phases: list[Phase] = field(default_factory=list)
    finished: list[FinishedRound] = field(default_factory=list)
    leads: list[bool] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)

    def new_traceparent(self, task: str, round_number: int) -> str:
        del task, round_number
        return ""

    def phase_entered(self, round_: Round, *, before: Round | None) -> None:
        del before
        self.phases.append(round_.phase)

    def round_finished(self, record: FinishedRound) -> None:
        self.finished.append(record)

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

    async def aggregate(self, round_: Round) -> CandidateModel | str | None:
        outcome = await super().aggregate(round_)
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

    def process(self, owner: str) -> Process:
        observer = Recorder()
        aggregation = SleepyAggregation(
            store=self.store,
            blobs=self.blobs,
            workers=self.workers,
            settings=AggregationSettings(aggregator=AggregatorConfig()),
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
                store=self.store,
                aggregation=aggregation,
                observer=observer,
                audit=audit,
                wakeup=News(),
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
        tensors, _ = decode_model(await self.blobs.get(model_blob(TASK, model.sha256)))
        return tensors["w"]

    def audit_lines(self) -> int:
        path = self.folder / "audit.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.005)


@pytest.fixture
async def bench(tmp_path: Path, redis_url: str) -> AsyncIterator[Bench]:
    client = RedisClient(redis_url, clock=CLOCK)
    found = Bench(
        client=client,
        store=RedisRoundStore(client),
        blobs=BlobStore(str(tmp_path / "blobs"), durability=Durability.PROCESS, num_threads=1),
        workers=Workers("test", threads=1),
        folder=tmp_path,
        task=TaskConfig(
            name=TASK,
            initial_model=tmp_path / "unused",
            num_rounds=2,
            reporting_goal=2,
            over_selection=1.0,
            selection_timeout_s=60,
            collection_timeout_s=600,
        ),
    )
    await client.command("SET", "test:clock", 1_000_000)
    sha256 = hashlib.sha256(MODEL).hexdigest()
    await found.blobs.put(model_blob(TASK, sha256), MODEL)
    first = ModelVersion(
        version=1,
        parent=None,
        round_number=None,
        sha256=sha256,
        size_bytes=len(MODEL),
        dim=DIM,
        created_at_ms=0,
        metrics={},
    )
    await found.store.create_task(TASK, model=first, num_rounds=2)
    yield found
    found.workers.close()
    found.blobs.close()
    await client.close()


async def test_a_round_goes_through_every_phase(bench: Bench) -> None:
    process = bench.process("a")
    await bench.collecting(process)
    await process.tick_until_idle()
    assert process.observer.phases == [
        Phase.SELECTING,
        Phase.COLLECTING,
        Phase.AGGREGATING,
        Phase.VALIDATING,
        Phase.PUBLISHED,
        Phase.SELECTING,
    ]
    np.testing.assert_array_equal(await bench.weights(), np.float32(2.0))
    assert process.observer.leads == [True]


async def test_a_task_ends_with_its_last_round(bench: Bench) -> None:
    process = bench.process("a")
    for number in (1, 2):
        await bench.collecting(process, round_number=number)
        await process.tick_until_idle()
    assert await process.tick_until_idle() == 0
    assert (await bench.round()).number == 2
    assert bench.audit_lines() == 2


async def test_only_the_leader_drives(bench: Bench) -> None:
    leader, other = bench.process("a"), bench.process("b")
    assert await leader.driver.tick()
    for _ in range(3):
        assert not await other.driver.tick()
    assert other.observer.phases == []
    assert other.observer.leads == [False]


@pytest.mark.parametrize("ticks", range(6))
async def test_a_dead_leaders_round_goes_on_from_where_it_stood(bench: Bench, ticks: int) -> None:
    dead, heir = bench.process("a"), bench.process("b")
    await bench.collecting(dead)
    for _ in range(ticks):
        await dead.driver.tick()
    assert not await heir.driver.tick()  # the lease still lives
    await bench.advance(LEASE_MS + 1)
    await heir.tick_until_idle()
    snapshot = await bench.snapshot()
    assert (snapshot.current_version, snapshot.published_rounds) == (2, 1)
    np.testing.assert_array_equal(await bench.weights(), np.float32(2.0))
    # Whatever the dead one had left to do is done once, and the next round is open.
    assert bench.audit_lines() == 1
    assert await bench.store.unaudited(TASK) == ()
    assert await bench.blobs.list("updates") == []
    assert (await bench.round()).number == 2


async def test_a_leader_that_slept_does_not_publish_over_its_heir(bench: Bench) -> None:
    sleeper, heir = bench.process("a"), bench.process("b")
    await bench.collecting(sleeper)
    assert await sleeper.driver.tick()  # the goal is reached
    sleeper.aggregation.asleep = asyncio.Event()
    sleeper.aggregation.wake_up = asyncio.Event()
    sleeping = asyncio.ensure_future(sleeper.driver.tick())
    await asyncio.wait_for(sleeper.aggregation.asleep.wait(), DEADLINE_S)
    await bench.advance(LEASE_MS + 1)
    await heir.tick_until_idle()
    before = await bench.snapshot()
    sleeper.aggregation.wake_up.set()
    assert not await sleeping  # fenced
    assert await bench.snapshot() == before
    assert Phase.VALIDATING not in sleeper.observer.phases
    assert not await sleeper.driver.tick()
    assert sleeper.observer.leads == [True, False]
    assert len(await bench.store.models(TASK)) == 2


async def test_too_few_offers_are_enough_only_after_a_while(bench: Bench) -> None:
    bench.task = bench.task.model_copy(update={"reporting_goal": 3, "min_contributions": 2})
    process = bench.process("a")
    await process.tick_until_idle()
    await bench.offer("d1", "d2")
    await process.tick_until_idle()
    assert (await bench.round()).phase is Phase.SELECTING
    await bench.advance(60_000)
    await process.tick_until_idle()
    round_ = await bench.round()
    assert (round_.phase, round_.cohort_size) == (Phase.COLLECTING, 2)


async def test_devices_that_took_part_often_enough_are_not_selected(bench: Bench) -> None:
    bench.task = bench.task.model_copy(update={"max_participations": 1})
    process = bench.process("a")
    await bench.collecting(process)
    await process.tick_until_idle()
    await bench.offer("d1", "d2", "d3", check_in_id="c2")
    await process.tick_until_idle()
    assert (await bench.round()).phase is Phase.SELECTING
    await bench.offer("d4", check_in_id="c2")
    await process.tick_until_idle()
    assert (await bench.round()).phase is Phase.COLLECTING
    cohort = await bench.client.command("HKEYS", f"{task_prefix(TASK)}cohort:2")
    assert isinstance(cohort, list)
    assert {*cohort} == {b"d3", b"d4"}


async def test_a_rollback_ends_a_round_in_any_phase(bench: Bench) -> None:
    process = bench.process("a")
    await bench.collecting(process)
    await process.tick_until_idle()  # version 2 is current, round 2 selects
    for _ in range(2):
        await bench.store.rollback(TASK, 1 if (await bench.round()).base_version == 2 else 2)
        number = (await bench.round()).number
        await process.tick_until_idle()
        record = (await bench.store.finished_rounds(TASK, limit=1))[0]
        assert record.number == number
        assert record.reason.startswith("base_version_changed")
        assert (await bench.round()).base_version == (await bench.snapshot()).current_version


async def test_the_loop_outlives_a_defect_and_a_full_disk(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "ERROR_PAUSE_S", 0.0)
    process = bench.process("a")
    await bench.collecting(process)
    process.audit.failures_left = 2
    running = asyncio.ensure_future(process.driver.run())

    async def went_on() -> bool:
        return (await bench.round()).number == 2

    await until(went_on)
    assert [type(error) for error in process.observer.failures] == [OSError, OSError]
    assert bench.audit_lines() == 1
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    # The lease was given back: the next leader need not wait for its end.
    heir = bench.process("b")
    await heir.driver.tick()
    assert heir.observer.leads == [True]


async def test_the_loop_waits_for_a_store_that_is_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = bench.process("a")
    answer, away = bench.store.snapshot, 3

    async def snapshot(task: str) -> Snapshot:
        nonlocal away
        if away:
            away -= 1
            raise StoreUnavailable("gone", retry_after_ms=1)
        return await answer(task)

    monkeypatch.setattr(bench.store, "snapshot", snapshot)
    running = asyncio.ensure_future(process.driver.run())

    async def went_on() -> bool:
        return Phase.SELECTING in process.observer.phases

    await until(went_on)
    assert [type(error) for error in process.observer.failures] == [StoreUnavailable] * 3
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_a_payload_that_is_gone_ends_the_round_with_its_reason(bench: Bench) -> None:
    process = bench.process("a")
    await bench.collecting(process)
    await bench.blobs.delete_prefix("updates")
    await process.tick_until_idle()
    (record,) = process.observer.finished
    assert record.decision == "abandoned"
    assert record.reason.startswith("aggregation_failed: no payload")
    assert (await bench.snapshot()).current_version == 1


async def test_a_payload_of_another_length_is_not_aggregated(bench: Bench) -> None:
    process = bench.process("a")
    await bench.collecting(process)
    (first, _) = await bench.blobs.list("updates")
    await bench.blobs.put(first, encode_dense(np.ones(DIM + 1, np.float32)))
    await process.tick_until_idle()
    (record,) = process.observer.finished
    assert "bytes" in record.reason
    assert (await bench.snapshot()).current_version == 1


async def test_a_candidate_that_is_gone_is_not_published(bench: Bench) -> None:
    process = bench.process("a")
    await bench.collecting(process)
    while (await bench.round()).phase is not Phase.VALIDATING:
        await process.driver.tick()
    candidate = (await bench.round()).candidate
    assert candidate is not None
    await bench.blobs.delete(model_blob(TASK, candidate.sha256))
    await process.driver.tick()
    (record,) = process.observer.finished
    assert record.reason.startswith("validation_failed: ")
    assert candidate.sha256 in record.reason
    assert (await bench.snapshot()).current_version == 1
