"""Runs a list of operations against real coordinators and real share holders, checks the promises.

Every statement is judged as it leaves its holder. In the end all faults are over: the task must
come to rest, what was published must be the exact mean of what the round says it is of, every
admitted update must be in it or left out for a reason, and another round must succeed.
"""

import hashlib
from collections.abc import Sequence
from typing import Final, assert_never

import numpy as np
import xxhash

from security.shared_round.terms.parameters import RoundParameters
from server.config import TaskConfig
from server.config.durability import Durability
from server.round.blob_names import model_blob
from server.round.ports import AdmissionVerdict, ModelVersion, Submission
from server.round.state import Phase, Round
from server.storage.blobs import BlobStore
from server.storage.redis_store import RedisRoundStore
from tests.chaos import shared_operations as ops
from tests.chaos.history import History
from tests.chaos.promise import require
from tests.chaos.shared_adversary import Adversary
from tests.chaos.shared_coordinator import DIM, Kept, SharedCoordinator, SharedLaboratory
from tests.chaos.shared_operations import ALL, HolderOperation, Operation, Setup
from tests.chaos.shared_outcome import Outcome, Story
from tests.chaos.stores import CLOCK_KEY, Fences
from tests.integration.shared_committee import update_of
from updates.vectors import encode_model

START_MS: Final = 1_000_000
NUM_ROUNDS: Final = 50
MAX_SETTLE_TURNS: Final = 20


class SharedSimulation:
    """One task from its creation on. Use `run` once."""

    def __init__(self, lab: SharedLaboratory, setup: Setup) -> None:
        lab.simulations += 1
        self._lab = lab
        self._task = f"task-{lab.simulations}"
        self._config = _config(self._task, setup, lab)
        self._store = RedisRoundStore(lab.control)
        self._blobs = BlobStore(
            str(lab.folder / "blobs"), durability=Durability.PROCESS, num_threads=1
        )
        self._kept = Kept()
        fences = Fences()
        self._coordinators = [
            SharedCoordinator(
                lab,
                index,
                self._config,
                committee=lab.fleet.committee,
                kept=self._kept,
                fences=fences,
            )
            for index in range(ops.COORDINATORS)
        ]
        self._history = History()
        self._story = Story()
        self._check_ins = 0
        self._is_troubled = False  # by anything but lies

    async def run(self, operations: Sequence[Operation]) -> int:
        """Run the operations, then check.

        Returns:
            Rounds that were published.

        Raises:
            BrokenPromise: if somebody did what they must not.
        """
        try:
            await self._start()
            for operation in operations:
                await self._apply(operation)
                await self._note_excuses(operation)
                await self._observe()
            await self._settle()
            await self._succeed_once_more()
            return await self._check_outcome()
        finally:
            await self._stop()

    async def _start(self) -> None:
        control = self._lab.control
        await control.command("FLUSHALL")
        await control.command("SET", CLOCK_KEY, START_MS)
        data = encode_model({"w": np.zeros(DIM, dtype=np.float32)})
        sha256 = hashlib.sha256(data).hexdigest()
        await self._blobs.put(model_blob(self._task, None, sha256), data)
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
        await self._store.create_task(self._task, model=first, num_rounds=NUM_ROUNDS)

    async def _stop(self) -> None:
        for coordinator in self._coordinators:
            await coordinator.stop()
        fleet = self._lab.fleet
        await fleet.recover()
        await fleet.purge()
        fleet.broken.clear()
        self._blobs.close()

    async def _apply(self, operation: Operation) -> None:
        fleet = self._lab.fleet
        match operation:
            case ops.Open():
                await self._open(operation.via)
            case ops.Admit():
                await self._admit(operation)
            case ops.Drive():
                for wire in fleet.wires.values():
                    wire.arm(operation.faults)
                coordinator = self._coordinators[operation.via]
                await coordinator.drive(operation.ticks, operation.store_fault)
            case ops.Kill():
                await self._coordinators[operation.via].kill()
            case ops.Resume():
                await self._coordinators[operation.via].resume()
            case ops.Advance():
                await self._advance(operation.ms)
            case ops.Attack():
                await self._attack(operation)
            case _:
                await self._apply_to_holders(operation)

    async def _apply_to_holders(self, operation: HolderOperation) -> None:
        fleet = self._lab.fleet
        match operation:
            case ops.StopHolder():
                await fleet.stop_holder(operation.holder)
            case ops.StartHolder():
                await fleet.start_holder(operation.holder)
            case ops.Crash():
                fleet.crash(operation)
            case ops.Deliver():
                for wire in fleet.wires.values():
                    await wire.deliver()
            case ops.Lying():
                fleet.lie(operation.lies)
            case _:
                assert_never(operation)

    async def _open(self, via: int) -> None:
        """Let every device offer itself, where a round waits for that."""
        coordinator = self._coordinators[via]
        await coordinator.drive(2, None)
        self._check_ins += 1
        for device in ALL:
            await self._store.check_in(
                self._task,
                device_id=_name(device),
                check_in_id=f"c{self._check_ins}",
                ttl_ms=10**12,
                wanted=ops.DEVICES,
            )
        await coordinator.drive(1, None)

    async def _admit(self, operation: ops.Admit) -> None:
        round_ = await self._round()
        if round_ is None or round_.shared is None:
            return
        params = RoundParameters.from_bytes(round_.shared.params_bytes)
        for device in operation.devices:
            name = _name(device)
            vector = update_of(f"{name}-{round_.number}", DIM)
            bundle = bytearray(self._lab.fleet.sealed(params, name, vector))
            is_damaged = device in operation.damaged
            bundle[-1] ^= is_damaged  # the last byte of the last holder's body
            if await self._submit(round_, name, bytes(bundle)):
                self._story.admitted[round_.number][name] = vector
                if is_damaged:
                    self._story.damaged[round_.number].add(name)

    async def _submit(self, round_: Round, device: str, bundle: bytes) -> bool:
        submission = Submission(
            task=self._task,
            round_number=round_.number,
            device_id=device,
            submission_id="s1",
            model_version=round_.base_version,
            num_samples=1,
            payload_bytes=len(bundle),
            digest=xxhash.xxh3_128_digest(bundle),
            loss_before=None,
            loss_after=None,
            inline_payload=bundle,
        )
        verdict = (await self._store.admit([submission]))[0].verdict
        return verdict is AdmissionVerdict.ACCEPTED

    async def _attack(self, attack: ops.Attack) -> None:
        round_ = await self._round()
        if round_ is None or round_.shared is None:
            return
        self._story.attacked.add(round_.number)
        params = RoundParameters.from_bytes(round_.shared.params_bytes)
        fleet = self._lab.fleet
        adversary = Adversary(
            params=params,
            log=fleet.logs[params.sha256],
            wires=fleet.wires,
            secrets=fleet.secrets[ops.LIAR - 1],
        )
        await adversary.attack(attack)

    async def _advance(self, ms: int) -> None:
        if ms >= ops.COLLECTION_MS:
            self._story.given_up.add(await self._number())
        await self._lab.control.command("INCRBY", CLOCK_KEY, ms)

    async def _note_excuses(self, operation: Operation) -> None:
        match operation:
            case ops.Open() | ops.Admit() | ops.Lying() | ops.Deliver() | ops.StartHolder():
                pass
            case ops.Drive(faults=(), store_fault=None):
                pass
            case _:
                self._is_troubled = True
        if self._lab.fleet.lies:
            number = await self._number()
            self._story.lied.add(number)
            if self._is_troubled:
                self._story.troubled_lies.add(number)

    async def _observe(self) -> None:
        for broken in self._lab.fleet.broken:
            raise broken
        self._history.observe(await self._round())

    async def _settle(self) -> None:
        """End all faults and let time pass until nothing happens any more."""
        await self._lab.fleet.recover()
        for _ in range(MAX_SETTLE_TURNS):
            for coordinator in self._coordinators:
                await coordinator.resume()
                await coordinator.drive(50, None)
                await self._observe()
            round_ = await self._round()
            if round_ is not None and (round_.is_terminal or round_.phase is Phase.SELECTING):
                return
            await self._lab.control.command("INCRBY", CLOCK_KEY, ops.LEASE_MS + 1)
            if round_ is not None and round_.phase is Phase.COLLECTING:
                await self._advance(ops.COLLECTION_MS)
            elif round_ is not None and round_.number in self._story.attacked:
                await self._advance(ops.MAX_WAIT_MS)
        require(False, f"the task does not come to rest: {round_}")

    async def _succeed_once_more(self) -> None:
        """After all that, a round without faults is published, with everybody in it."""
        before = (await self._store.snapshot(self._task)).published_rounds
        await self._lab.control.command("INCRBY", CLOCK_KEY, ops.LEASE_MS + 1)
        steps: list[Operation] = [ops.Open(), ops.Admit(devices=ALL), ops.Drive()]
        for operation in steps:
            await self._apply(operation)
            await self._observe()
        after = (await self._store.snapshot(self._task)).published_rounds
        require(after == before + 1, f"a faultless round failed: {self._history.last}")

    async def _check_outcome(self) -> int:
        outcome = Outcome(
            task=self._task,
            store=self._store,
            blobs=self._blobs,
            rounds=self._kept.rounds,
            logs=self._lab.fleet.logs,
            story=self._story,
            is_grouped=self._config.sharing.group_size > 0,
        )
        return await outcome.check()

    async def _round(self) -> Round | None:
        return (await self._store.snapshot(self._task)).round

    async def _number(self) -> int:
        round_ = await self._round()
        return round_.number if round_ else 0


def _name(device: int) -> str:
    return f"d{device}"


def _config(task: str, setup: Setup, lab: SharedLaboratory) -> TaskConfig:
    return TaskConfig.model_validate(
        {
            "name": task,
            "initial-model": lab.folder / "unused",
            "mode": "shared",
            "num-rounds": NUM_ROUNDS,
            "reporting-goal": ops.GOAL,
            "min-contributions": ops.MIN_MEMBERS,
            "over-selection": ops.DEVICES / ops.GOAL,
            "collection-timeout-s": ops.COLLECTION_MS / 1000,
            "seed": 1,
            "plan": {"clipping-norm": 1.0},
            "sharing": {
                "committee": lab.folder / "unused",
                "format": setup.share_format,
                "checks": setup.checks,
                "group-size": setup.group_size,
                "degraded": setup.degraded,
                "sketch-dim": 64,
                "min-members": ops.MIN_MEMBERS,
                "holder-timeout-s": ops.HOLDER_TIMEOUT_MS / 1000,
                "max-wait-s": ops.MAX_WAIT_MS / 1000,
            },
        }
    )
