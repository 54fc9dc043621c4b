"""Runs a list of operations against real coordinators and checks what was promised.

Devices act over gRPC, drivers work when an operation says so, time passes when an operation says
so. After every operation the round's history must be sound. In the end all faults are over: the
task must come to rest, every retry must get its old answer, the models must hold exactly what was
acknowledged, and another round must succeed.
"""

import asyncio
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, assert_never

import numpy as np

from aggregators.aggregator_state import decode_state
from server.config import TaskConfig
from server.config.durability import Durability
from server.privacy.budget_gate import PrivateRounds
from server.round.blob_names import model_blob, state_blob
from server.round.ports import ModelVersion, Snapshot
from server.round.state import Phase
from server.storage.blobs import BlobStore
from server.storage.redis_store import RedisRoundStore
from server.task.resolving import task_info
from tests.chaos import operations as ops
from tests.chaos.coordinator import Coordinator, Laboratory
from tests.chaos.history import History
from tests.chaos.ledger import DIM, Attempt, Ledger, Vector
from tests.chaos.link import TASK, Answer, DeviceLink, Refusal, Silence
from tests.chaos.operations import ALL, Link, Operation
from tests.chaos.promise import require
from tests.chaos.stores import CLOCK_KEY, Fences, Releases
from updates.vectors import decode_model, encode_model

START_MS: Final = 1_000_000
NUM_ROUNDS: Final = 4
MAX_SETTLE_TURNS: Final = 20

# What a device may be told while nothing but the network and the store are at fault.
_REFUSALS: Final = frozenset(
    {
        "ROUND_CLOSED",
        "DEVICE_NOT_SELECTED",
        "SUBMISSION_CONFLICT",
        "ALREADY_CONTRIBUTED",
        "TRUNCATED_STREAM",
        "OFFSET_OUT_OF_RANGE",
        "STORE_UNAVAILABLE",
        "OVERLOADED",  # the device's broken streams still hold its places
    }
)


class Simulation:
    """One task from its creation on. Use `run` once."""

    def __init__(self, lab: Laboratory, data_dir: Path) -> None:
        self._lab = lab
        self._data_dir = data_dir
        self._info = task_info(self._task(), dim=DIM)
        self._store = RedisRoundStore(lab.control)
        self._releases = Releases()
        fences, private = Fences(), self._private()
        self._coordinators = [
            Coordinator(
                lab,
                index,
                self._info,
                data_dir=data_dir,
                fences=fences,
                releases=self._releases,
                private=private,
            )
            for index in range(ops.COORDINATORS)
        ]
        self._links = [DeviceLink(coordinator.address) for coordinator in self._coordinators]
        self._ledger = Ledger()
        self._now_ms = START_MS
        self._check_in_ids = ["c0"] * ops.DEVICES
        self._ids_used = 0
        self._history = History()

    async def run(self, operations: Sequence[Operation]) -> int:
        """Run the operations, then check.

        Returns:
            Rounds that were published.

        Raises:
            BrokenPromise: if the service did what it must not.
        """
        try:
            await self._start()
            for operation in operations:
                await self._apply(operation)
                await self._observe()
            await self._settle()
            await self._succeed_once_more()
            await self._resend_everything()
            return await self._check_outcome()
        finally:
            await self._stop()

    def _task(self) -> TaskConfig:
        return TaskConfig(
            name=TASK,
            initial_model=self._data_dir / "unused",
            num_rounds=NUM_ROUNDS,
            reporting_goal=ops.GOAL,
            min_contributions=ops.QUORUM,
            over_selection=1.3,
            selection_timeout_s=ops.SELECTION_MS / 1000,
            collection_timeout_s=ops.COLLECTION_MS / 1000,
            seed=1,
        )

    def _private(self) -> PrivateRounds | None:
        """The task's privacy; None: it has none."""
        return None

    async def _start(self) -> None:
        await self._lab.control.command("FLUSHALL")
        await self._advance(0)
        data = encode_model({"w": np.zeros(DIM, dtype=np.float32)})
        sha256 = hashlib.sha256(data).hexdigest()
        blobs = BlobStore(str(self._data_dir / "blobs"), durability=Durability.PROCESS)
        await blobs.put(model_blob(TASK, None, sha256), data)
        blobs.close()
        first = ModelVersion(
            version=1,
            parent=None,
            round_number=None,
            sha256=sha256,
            size_bytes=len(data),
            dim=DIM,
            created_at_ms=START_MS,
            metrics={},
        )
        await self._store.create_task(TASK, model=first, num_rounds=NUM_ROUNDS)
        for coordinator in self._coordinators:
            await coordinator.start()

    async def _stop(self) -> None:
        for link in self._links:
            await link.close()
        for coordinator in self._coordinators:
            await coordinator.stop()
        shutil.rmtree(self._data_dir)

    async def _apply(self, operation: Operation) -> None:
        match operation:
            case ops.CheckIn():
                for device in operation.devices:
                    await self._check_in(device, operation)
            case ops.Upload():
                for device in operation.devices:
                    await self._upload(device, operation)
            case ops.Drive(via=via, fault=fault):
                await self._coordinators[via].drive(fault)
            case ops.Kill(via=via):
                await self._coordinators[via].kill()
            case ops.Resume(via=via):
                await self._coordinators[via].resume()
            case ops.Advance(ms=ms):
                await self._advance(ms)
            case ops.Rollback(back=back):
                await self._roll_back(back)
            case _:
                assert_never(operation)

    async def _advance(self, ms: int) -> None:
        self._now_ms += ms
        await self._lab.control.command("SET", CLOCK_KEY, self._now_ms)

    async def _roll_back(self, back: int) -> None:
        snapshot = await self._snapshot()
        if snapshot.round is not None:
            self._ledger.rolled_back.add(snapshot.round.number)
        await self._store.rollback(TASK, max(1, snapshot.latest_version - back))

    async def _check_in(self, device: int, operation: ops.CheckIn) -> None:
        if not operation.again:
            self._ids_used += 1
            self._check_in_ids[device] = f"c{self._ids_used}"
        if operation.link is Link.DROP_REQUEST:
            return
        vias = [operation.via]
        if operation.link in {Link.TWICE, Link.RACE}:
            vias = list(range(ops.COORDINATORS))
        responses = await asyncio.gather(
            *(self._links[via].check_in(device, self._check_in_ids[device]) for via in vias)
        )
        if operation.link is Link.DROP_RESPONSE:
            return
        for response in responses:
            if response.HasField("assignment"):
                self._ledger.note_assignment(device, response.assignment, now_ms=self._now_ms)

    async def _upload(self, device: int, operation: ops.Upload) -> None:
        round_ = self._round_for(device, operation)
        if round_ is None:
            return
        attempt = Attempt(
            round=round_,
            device=device,
            submission=operation.submission,
            payload=operation.payload,
        )
        attempts = [attempt]
        vias = [operation.via]
        if operation.link in {Link.TWICE, Link.RACE}:
            vias = [operation.via, 1 - operation.via]
            other = replace(attempt, payload=1 - attempt.payload)
            attempts = [attempt, other if operation.link is Link.RACE else attempt]
        faults = self._coordinators[operation.via].service_faults
        faults.arm(operation.store_fault)
        before = [self._ledger.rival(one) for one in attempts]
        answers = await asyncio.gather(
            *(self._send(one, via, operation) for one, via in zip(attempts, vias, strict=True))
        )
        faults.reset()
        for one, answer, known in zip(attempts, answers, before, strict=True):
            self._judge(one, answer, known, operation)

    def _round_for(self, device: int, operation: ops.Upload) -> int | None:
        assigned = self._ledger.assigned[device]
        if operation.intrude:
            newest = max(self._ledger.model_versions, default=None)
            return None if newest in assigned else newest
        if operation.stale:
            return assigned[-2] if len(assigned) > 1 else None
        return assigned[-1] if assigned else None

    async def _send(self, attempt: Attempt, via: int, operation: ops.Upload) -> Answer:
        forbidden = attempt.round not in self._ledger.assigned[attempt.device]
        fate = self._ledger.note_sent(attempt, forbidden=forbidden, now_ms=self._now_ms)
        return await self._links[via].upload(
            attempt, model_version=fate.model_version, path=operation.path, link=operation.link
        )

    def _judge(
        self, attempt: Attempt, answer: Answer, known: Attempt | None, operation: ops.Upload
    ) -> None:
        match answer:
            case Silence():
                pass
            case Refusal(reason=reason):
                require(reason in _REFUSALS, f"{attempt} was refused with {reason}")
                if operation.store_fault is None and known is not None:
                    expected = _refusal_after(known, attempt)
                    require(reason == expected, f"{attempt} after {known} got {reason}")
            case _:
                self._ledger.note_receipt(attempt, answer, now_ms=self._now_ms)

    async def _observe(self) -> None:
        self._history.observe((await self._snapshot()).round)

    async def _settle(self) -> None:
        """End all faults and let time pass until nothing happens any more."""
        for _ in range(MAX_SETTLE_TURNS):
            for coordinator in self._coordinators:
                await coordinator.resume()
                await coordinator.drive(None)
                await self._observe()
            round_ = (await self._snapshot()).round
            if round_ is not None and (round_.is_terminal or round_.phase is Phase.SELECTING):
                return
            await self._advance(ops.COLLECTION_MS)
        require(False, f"the task does not come to rest: {round_}")

    async def _succeed_once_more(self) -> None:
        """After all that, a round without faults is published."""
        published = (await self._snapshot()).published_rounds
        if published >= NUM_ROUNDS:
            return
        await self._advance(ops.OFFER_MS + 1)  # whatever lease or offer there is, is over
        offer = ops.CheckIn(devices=ALL, again=False)
        drive: list[Operation] = [ops.Drive(via=0), ops.Drive(via=1)]
        upload = ops.Upload(devices=ALL, via=1)
        ask = replace(offer, again=True)
        steps: list[Operation] = [offer, *drive, ask, upload, *drive]
        for operation in steps:
            await self._apply(operation)
            await self._observe()
        after = (await self._snapshot()).published_rounds
        require(after == published + 1, f"a faultless round failed: {self._history.last}")

    async def _resend_everything(self) -> None:
        """Learn the fate of what was never answered; what was answered keeps its answer."""
        for attempt in sorted(self._ledger.fates):
            for via in range(ops.COORDINATORS):
                retry = ops.Upload(
                    devices=(attempt.device,),
                    via=via,
                    submission=attempt.submission,
                    payload=attempt.payload,
                )
                known = self._ledger.rival(attempt)
                answer = await self._send(attempt, via, retry)
                self._judge(attempt, answer, known, retry)

    async def _check_outcome(self) -> int:
        versions = await self._versions()
        published = self._ledger.check_models(versions)
        await self._check_states(versions)
        finished = [
            record.number for record in await self._store.finished_rounds(TASK, limit=1_000)
        ]
        require(finished == list(range(1, len(finished) + 1)), f"finished rounds: {finished}")
        self._ledger.check_unpublished(len(finished), published)
        log = self._data_dir / "audit.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        audited = sorted(json.loads(line)["round_id"] for line in lines)
        require(audited == finished, f"audited rounds: {audited}, finished rounds: {finished}")
        return len(published)

    async def _check_states(self, versions: Sequence[Vector]) -> None:
        """Each version has the state that belongs to it, whoever published it."""
        for model, weights in zip(await self._store.models(TASK), versions, strict=True):
            if not model.state_sha256:
                require(model.round_number is None, f"version {model.version} has no state")
                continue
            path = (
                self._data_dir / "blobs" / state_blob(TASK, model.round_number, model.state_sha256)
            )
            require(path.exists(), f"the state of version {model.version} is gone")
            data = path.read_bytes()
            state = decode_state(data)
            is_its_own = np.array_equal(state.weights.astype(np.float32), weights)
            is_whole = hashlib.sha256(data).hexdigest() == model.state_sha256
            require(is_its_own and is_whole, f"version {model.version} has another state")

    async def _versions(self) -> list[Vector]:
        versions: list[Vector] = []
        while (data := await self._links[0].model(len(versions) + 1)) is not None:
            versions.append(decode_model(data)[0]["w"])
        return versions

    async def _snapshot(self) -> Snapshot:
        return await self._store.snapshot(TASK)


def _refusal_after(known: Attempt, attempt: Attempt) -> str:
    if known == attempt:
        return "a receipt"
    same_id = known.submission == attempt.submission
    return "SUBMISSION_CONFLICT" if same_id else "ALREADY_CONTRIBUTED"
