"""The committee of a simulation: real holders on real folders, each behind a wire."""

import hashlib
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar

import grpc
import numpy as np
import pytest

from protos.fedagg.v1 import errors_pb2
from protos.fedagg.v1 import share_holder_pb2 as pb
from protos.fedagg.v1 import shared_round_pb2 as round_pb
from protos.wire import ERROR_METADATA_KEY
from security.shared_round.keys.signing import sign_statement
from security.shared_round.terms.committee import Committee
from server.errors import StoreUnavailable
from server.holder import app
from server.holder.storage.holder_storage import HolderStorage
from server.holder.storage.ledger import Ledger
from tests.chaos.faults import Moment
from tests.chaos.promise import BrokenPromise
from tests.chaos.shared_adversary import spin
from tests.chaos.shared_operations import HOLDERS, LIAR, THRESHOLD, Lie
from tests.chaos.shared_operations import Crash as HolderCrash
from tests.chaos.shared_statements import StatementLog
from tests.chaos.shared_wire import Messages, Refused, Wire, read_statement
from tests.integration.shared_committee import Holders

R = TypeVar("R")
_FALSE_REASONS: Final = ("SHARE_MISSING", "SET_CONFLICT", "UNKNOWN_ROUND", "KEYS_MISSING")


class FragileStorage(HolderStorage):
    """A holder's folder whose process dies at a transaction, when it is told to."""

    crashes: dict[Path, tuple[int, Moment]] = {}  # noqa: RUF012  # set by the fleet

    def __init__(self, folder: Path, **how: Any) -> None:
        self._place = folder
        self._is_dead = False
        super().__init__(folder, **how)

    def write(self, change: Callable[[Ledger], R]) -> R:
        if self._is_dead:
            msg = "the process is gone"
            raise StoreUnavailable(msg)
        left, moment = self.crashes.get(self._place, (-1, Moment.BEFORE))
        if left > 0:
            self.crashes[self._place] = (left - 1, moment)
        if left != 0:
            return super().write(change)
        if moment is Moment.AFTER:
            super().write(change)
        self._is_dead = True
        del self.crashes[self._place]
        msg = "the process is gone"
        raise StoreUnavailable(msg)


class HolderFleet:
    """Holders that live as long as the laboratory; a simulation stops and starts them.

    Attributes:
        logs: what was stated, by round.
        broken: what an honest holder did that it must not.
        lies: how the dishonest holder lies.
    """

    def __init__(self, folder: Path) -> None:
        self._seam = pytest.MonkeyPatch()
        self._seam.setattr(app, "HolderStorage", FragileStorage)
        self._folder = folder
        self._holders = Holders(
            folder,
            threshold=THRESHOLD,
            holders=HOLDERS,
            policy={"degraded": ["wait", "unchecked"], "min-sketch-dim": 64},
        )
        self.secrets = self._holders.secrets
        self.logs: dict[bytes, StatementLog] = defaultdict(StatementLog)
        self.broken: list[BrokenPromise] = []
        self._running: set[int] = set()
        self._fragile: set[int] = set()
        self._random = Random(0)
        self.lies: frozenset[Lie] = frozenset()
        self.wires = {holder: self._wire(holder) for holder in range(1, HOLDERS + 1)}

    @property
    def committee(self) -> Committee:
        """The committee with the addresses of the wires."""
        identities = tuple(
            replace(identity, address=self.wires[identity.index].address)
            for identity in self._holders.committee.holders
        )
        return replace(self._holders.committee, holders=identities)

    async def start(self) -> None:
        for holder, wire in self.wires.items():
            await wire.start()
            await self.start_holder(holder)

    async def close(self) -> None:
        for holder, wire in self.wires.items():
            await self.stop_holder(holder)
            await wire.close()
        self._seam.undo()

    async def start_holder(self, holder: int) -> None:
        """Start the holder; one that crashed is started anew."""
        FragileStorage.crashes.pop(self._data(holder), None)
        self._fragile.discard(holder)
        await self.stop_holder(holder)
        await self._holders.start(holder)
        self._running.add(holder)
        await self.wires[holder].connect(self._holders.committee.identity(holder).address)

    async def stop_holder(self, holder: int) -> None:
        """End the holder; what it was doing, it does not finish."""
        if holder in self._running:
            self._running.discard(holder)
            await self.wires[holder].disconnect()
            await self._holders.stop(holder)

    def crash(self, crash: HolderCrash) -> None:
        """Let a holder die at one of its next transactions."""
        self._fragile.add(crash.holder)
        FragileStorage.crashes[self._data(crash.holder)] = (crash.write, crash.moment)

    async def recover(self) -> None:
        """All faults are over, every holder runs."""
        for holder, wire in self.wires.items():
            wire.reset()
            if holder not in self._running or holder in self._fragile:
                await self.start_holder(holder)
        self.lie(frozenset())

    async def purge(self) -> None:
        """Let the holders forget what simulations left open."""
        for params_sha256 in self.logs:
            for wire in self.wires.values():
                request = pb.PurgeRequest(params_sha256=params_sha256)
                with suppress(Refused):  # it was never told of the round
                    await wire.call("Purge", [request.SerializeToString()])
        self.logs.clear()

    def lie(self, lies: frozenset[Lie]) -> None:
        """Let the dishonest holder lie like this from now on."""
        self.lies = lies
        self.wires[LIAR].lie = self._lie if lies else None

    def sealed(self, *about: Any) -> bytes:
        """A device's bundle."""
        return self._holders.sealed(*about)

    def _data(self, holder: int) -> Path:
        return self._folder / f"holder-{holder}"

    def _wire(self, holder: int) -> Wire:
        return Wire(holder, kill=lambda: self.stop_holder(holder), heard=self._heard)

    def _heard(self, holder: int, signed: round_pb.SignedStatement) -> None:
        said = read_statement(signed)
        try:
            self.logs[said.params_sha256].hear(holder, signed)
        except BrokenPromise as broken:  # nothing between here and the test may catch it
            self.broken.append(broken)

    def _lie(self, method: str, _: Messages, answers: Messages) -> Messages:
        kind = {"RevealCoin": Lie.COIN, "OpenChecks": Lie.OPENINGS, "ReleaseSum": Lie.SUM}
        statements = {"Freeze", "LockBox", "Commit", *kind}
        if method not in statements:
            return answers
        if Lie.REFUSAL in self.lies:
            raise Refused(_refusal(self._random.choice(_FALSE_REASONS)))
        if Lie.GARBAGE in self.lies:
            return [self._random.randbytes(40)]
        if Lie.BAD_SIGNATURE in self.lies and method != "ReleaseSum":
            signed = round_pb.SignedStatement.FromString(answers[0])
            forged = round_pb.SignedStatement(statement=signed.statement, signature=bytes(64))
            return [forged.SerializeToString()]
        if kind.get(method) not in self.lies:
            return answers
        if method == "ReleaseSum":
            return self._other_sums(answers)
        statement = read_statement(round_pb.SignedStatement.FromString(answers[0]))
        spin(statement, statement.WhichOneof("statement") or "", self._random)
        return [sign_statement(self.secrets[LIAR - 1], statement).SerializeToString()]

    def _other_sums(self, answers: Messages) -> Messages:
        chunks = [pb.SumChunk.FromString(answer) for answer in answers]
        words = np.frombuffer(b"".join(chunk.data for chunk in chunks), "<u8").copy()
        words[self._random.randrange(len(words))] = self._random.randrange(2**31 - 1)
        statement = read_statement(chunks[0].statement)
        statement.sum.data_sha256 = hashlib.sha256(words.tobytes()).digest()
        signed = sign_statement(self.secrets[LIAR - 1], statement)
        told = [pb.SumChunk(statement=signed), pb.SumChunk(data=words.tobytes())]
        return [chunk.SerializeToString() for chunk in told]


def _refusal(reason: str) -> tuple[grpc.StatusCode, str, list[tuple[str, bytes]]]:
    detail = errors_pb2.ErrorDetail(reason=errors_pb2.ErrorReason.Value(reason), message="a lie")
    metadata = [(ERROR_METADATA_KEY, detail.SerializeToString())]
    return grpc.StatusCode.FAILED_PRECONDITION, "a lie", metadata
