"""A version's files: no round starts without them, none is published without, none is lost."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from server.driver.aggregation import Aggregation, UnusableVersion
from server.errors import Overloaded
from server.models.replay import Replay, Replayer
from server.round.blob_names import kept_round_blob, model_blob, state_blob, updates_prefix
from server.round.ports import ModelVersion
from server.round.state import AbandonReason, Phase
from server.storage.blobs import BlobStore
from tests.server.driver.driver_bench import LEASE_MS, TASK, Bench, Process, Recorder
from tests.server.privacy.test_budget_gate import budget_of, ledger_of, make_private
from tests.server.round.stepping import settings_of


def state_of(model: ModelVersion) -> str:
    return state_blob(TASK, model.round_number, model.state_sha256)


def file_of(model: ModelVersion) -> str:
    return model_blob(TASK, model.round_number, model.sha256)


async def until(bench: Bench, process: Process, phase: Phase) -> None:
    for _ in range(50):
        if (await bench.round()).phase is phase:
            return
        await process.driver.tick()
    pytest.fail(f"never {phase}")


async def spoil(blobs: BlobStore, key: str, how: str) -> None:
    if how == "gone":
        await blobs.delete(key)
    else:
        data = bytearray(await blobs.get(key))
        data[-1] ^= 1
        await blobs.put(key, bytes(data))


@pytest.mark.parametrize("how", ["gone", "altered"])
@pytest.mark.parametrize("file", [state_of, file_of])
async def test_no_round_opens_on_a_version_that_no_step_can_be_taken_from(
    bench: Bench, file: Callable[[ModelVersion], str], how: str
) -> None:
    """Devices would train for nothing, and a private task would spend its budget on it."""
    await make_private(bench, epsilon=budget_of(9))
    process = bench.process("a")
    await bench.collecting(process)
    await until(bench, process, Phase.PUBLISHED)
    before = await ledger_of(bench)
    await spoil(bench.blobs, file(await bench.store.model(TASK, 2)), how)
    process = bench.process("b")  # one that has not read the files before
    await bench.advance(LEASE_MS + 1)
    with pytest.raises(UnusableVersion, match="no round can start from version 2, roll back"):
        await process.tick_until_idle()
    assert await ledger_of(bench) == before
    await bench.store.rollback(TASK, 1)
    await process.tick_until_idle()
    assert (await bench.round()).number == 2
    assert (await bench.round()).base_version == 1


async def test_without_that_look_a_round_opens_and_spends_its_budget(bench: Bench) -> None:
    """The control: what the look at the files prevents does happen without it."""
    await make_private(bench, epsilon=budget_of(9))
    process = bench.process("a")
    await bench.collecting(process)
    await until(bench, process, Phase.PUBLISHED)
    before = await ledger_of(bench)
    await spoil(bench.blobs, state_of(await bench.store.model(TASK, 2)), "gone")
    process.aggregation._sound_version = 2  # as if it had been read
    await bench.collecting(process, round_number=2)
    await until(bench, process, Phase.ABANDONED)
    assert (await bench.round()).reason is AbandonReason.AGGREGATION_FAILED
    assert (await ledger_of(bench)).rounds_committed == before.rounds_committed + 1
    with pytest.raises(UnusableVersion):  # once: then it is read again
        await process.tick_until_idle()


@pytest.mark.parametrize("how", ["gone", "altered"])
async def test_a_candidate_is_not_published_without_its_state(bench: Bench, how: str) -> None:
    process = bench.process("a")
    await bench.collecting(process)
    await until(bench, process, Phase.VALIDATING)
    candidate = (await bench.round()).candidate
    assert candidate is not None
    await spoil(bench.blobs, state_blob(TASK, 1, candidate.state_sha256), how)
    await until(bench, process, Phase.ABANDONED)
    round_ = await bench.round()
    assert round_.reason is AbandonReason.VALIDATION_FAILED
    assert "gone or damaged" in round_.detail
    assert (await bench.snapshot()).current_version == 1


class Sleeping:
    """Blobs whose owner falls asleep before it deletes or puts one."""

    def __init__(self, blobs: BlobStore, *, before: str) -> None:
        self._blobs = blobs
        self._before = before
        self.asleep, self.wake = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self._blobs, name)

    async def delete(self, key: str) -> None:
        await self._nap("delete")
        await self._blobs.delete(key)

    async def put(self, key: str, data: bytes) -> None:
        await self._nap("kept" if "/kept/" in key else "put")
        await self._blobs.put(key, data)

    async def _nap(self, what: str) -> None:
        if what == self._before:
            self.asleep.set()
            await self.wake.wait()


def put_to_sleep(bench: Bench, process: Process, *, before: str) -> Sleeping:
    sleeping = Sleeping(bench.blobs, before=before)
    process.aggregation._blobs = sleeping  # type: ignore[assignment]  # all but two calls
    return sleeping


async def test_a_leader_that_slept_deletes_no_file_of_a_version(bench: Bench) -> None:
    """Another round may have made the same model meanwhile."""
    first = bench.process("a")
    await bench.collecting(first)
    await first.tick_until_idle()
    await bench.collecting(first, round_number=2)
    await until(bench, first, Phase.VALIDATING)
    await bench.store.rollback(TASK, 1)
    sleeping = put_to_sleep(bench, first, before="delete")
    late = asyncio.ensure_future(first.driver.tick())
    await sleeping.asleep.wait()
    await bench.store.rollback(TASK, 2)
    await bench.advance(LEASE_MS + 1)
    second = bench.process("b")
    await bench.collecting(second, round_number=3)
    await until(bench, second, Phase.PUBLISHED)
    sleeping.wake.set()
    await late
    model = await bench.store.model(TASK, (await bench.snapshot()).current_version)
    assert model.round_number == 3
    assert await bench.blobs.size(file_of(model)) is not None
    assert await bench.blobs.size(state_of(model)) is not None


@pytest.mark.parametrize("name", ["notes.txt", "00000001.bak/x", "-0000001/x", "1/x", "9" * 30])
async def test_names_that_are_no_round_are_left_alone(bench: Bench, name: str) -> None:
    process = bench.process("a")
    key = updates_prefix(TASK) + name
    await bench.blobs.put(key, b"x")
    await bench.collecting(process)
    await process.tick_until_idle()
    assert (await bench.round()).number == 2
    assert await bench.blobs.size(key) == 1


def keeping(bench: Bench, process: Process, *, learning_rate: float = 1.0) -> Aggregation:
    """Let a process keep five rounds."""
    aggregation = Aggregation(
        admission=bench.store,
        ledger=bench.store,
        registry=bench.store,
        blobs=bench.blobs,
        workers=bench.workers,
        settings=settings_of(learning_rate=learning_rate),
        observer=Recorder(),
        keep_contributions=5,
    )
    process.driver._ports = replace(process.driver._ports, aggregation=aggregation)
    process.aggregation = aggregation  # type: ignore[assignment]  # one that keeps
    return aggregation


def replayer_of(bench: Bench) -> Replayer:
    return Replayer(
        registry=bench.store, blobs=bench.blobs, workers=bench.workers, settings=settings_of()
    )


async def test_a_leader_that_slept_does_not_change_what_a_version_is_replayed_from(
    bench: Bench,
) -> None:
    first, second = bench.process("a"), bench.process("b")
    keeping(bench, first, learning_rate=0.5)
    keeping(bench, second)
    await bench.collecting(first)
    await first.driver.tick()
    sleeping = put_to_sleep(bench, first, before="kept")
    late = asyncio.ensure_future(first.driver.tick())
    await sleeping.asleep.wait()
    await bench.advance(LEASE_MS + 1)
    await second.tick_until_idle()
    sleeping.wake.set()
    await late
    assert (await replayer_of(bench).replay(TASK, 1)).is_same


async def kept(bench: Bench) -> tuple[ModelVersion, str]:
    process = bench.process("a")
    keeping(bench, process)
    await bench.collecting(process)
    await process.tick_until_idle()
    model = await bench.store.model(TASK, 2)
    return model, kept_round_blob(TASK, 1, model.sha256)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"format":1', b'"format":2'),
        (b'"base_version":1', b'"base_version":9'),
        (b'"base_version":1', b'"base_version":""'),
        (b'"device_id":"d1"', b'"device_id":1'),
        (b'"num_samples":1', b'"num_samples":"1"'),
        (b'"rule":"mean"', b'"rule":["mean"]'),
        (b'"rule":"mean"', b'"rule":"mode"'),
        (b'"contributions":[', b'"contributions":[7,'),
        (b'"settings":{', b'"settings":{"new":1,'),
        (b"{", b"[" * 100_000 + b"{"),
    ],
)
async def test_a_replay_says_why_it_cannot_be(bench: Bench, old: bytes, new: bytes) -> None:
    model, key = await kept(bench)
    data = await bench.blobs.get(key)
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].replace(old, new, 1)
    assert text != data[8 : 8 + length]
    await bench.blobs.put(key, len(text).to_bytes(8, "little") + text + data[8 + length :])
    found = await replayer_of(bench).replay(TASK, 1)
    assert not found.is_same
    assert found.problem.startswith("cannot be built again")
    assert found.version == model


async def test_a_replay_looks_at_the_published_files_too(bench: Bench) -> None:
    model, _ = await kept(bench)
    assert (await replayer_of(bench).replay(TASK, 1)).is_same
    await spoil(bench.blobs, file_of(model), "altered")
    found = await replayer_of(bench).replay(TASK, 1)
    assert "the model file is damaged" in found.problem


async def test_rounds_are_replayed_one_at_a_time(bench: Bench) -> None:
    await kept(bench)
    replayer = replayer_of(bench)
    first, second = await asyncio.gather(
        replayer.replay(TASK, 1), replayer.replay(TASK, 1), return_exceptions=True
    )
    assert isinstance(first, Replay)
    assert first.is_same
    assert isinstance(second, Overloaded)
    assert (await replayer.replay(TASK, 1)).is_same


async def test_what_was_kept_goes_when_it_is_kept_no_more(bench: Bench) -> None:
    """Also of a task that ends no further round."""
    await kept(bench)
    assert await bench.blobs.list(updates_prefix(TASK))
    await bench.advance(LEASE_MS + 1)
    await bench.process("b").tick_until_idle()
    assert not await bench.blobs.list(updates_prefix(TASK))
