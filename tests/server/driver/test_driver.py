"""The driver against a real store: who leads, what a crash leaves, and what outlives a defect.

The drivers are ticked by hand and the store's clock stands still, so that a process may die or fall
asleep between any two steps.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import numpy as np
import pytest

from server.driver import driver as driver_module
from server.errors import StoreUnavailable
from server.round.blob_names import model_blob
from server.round.ports import (
    Snapshot,
)
from server.round.state import Phase
from server.storage.keys import task_prefix
from tests.server.driver.driver_bench import DIM, LEASE_MS, TASK, Bench
from updates.codec import encode_dense

DEADLINE_S: Final = 20.0


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.005)


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
    first, _ = await bench.blobs.list("updates")
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
    await bench.blobs.delete(model_blob(TASK, 1, candidate.sha256))
    await process.driver.tick()
    (record,) = process.observer.finished
    assert record.reason.startswith("validation_failed: ")
    assert candidate.sha256 in record.reason
    assert (await bench.snapshot()).current_version == 1
