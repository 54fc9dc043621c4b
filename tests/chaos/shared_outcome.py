"""What became of the rounds of a simulation, against what the devices know and did."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators.aggregator_state import decode_state
from security.shared_round.terms.parameters import RoundParameters
from server.round.blob_names import model_blob, state_blob
from server.round.ports import FinishedRound
from server.storage.blobs import BlobStore
from server.storage.redis_store import RedisRoundStore
from tests.chaos import shared_operations as ops
from tests.chaos.promise import require
from tests.chaos.shared_statements import StatementLog
from tests.integration.shared_committee import Vector
from updates.vectors import decode_model

FRACTION_BITS: Final = 20
# A group's mean is rounded to float32 once more on its way to the rule.
GROUPS_TOLERANCE: Final = 1e-7


@dataclass
class Story:
    """What happened in each round.

    Attributes:
        admitted: updates that were acknowledged, by round and device.
        damaged: devices whose update cannot be used.
        attacked: rounds in which a coordinator followed no rule.
        lied: rounds in which a holder lied.
        troubled_lies: those of them in which something else failed too.
        given_up: rounds in which more time passed than the task waits.
    """

    admitted: dict[int, dict[str, Vector]] = field(default_factory=lambda: defaultdict(dict))
    damaged: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    attacked: set[int] = field(default_factory=set)
    lied: set[int] = field(default_factory=set)
    troubled_lies: set[int] = field(default_factory=set)
    given_up: set[int] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Compares the finished rounds and the models with the story."""

    task: str
    store: RedisRoundStore
    blobs: BlobStore
    rounds: Mapping[int, FinishedRound]
    logs: Mapping[bytes, StatementLog]
    story: Story
    is_grouped: bool

    async def check(self) -> int:
        """Check every round that ended.

        Returns:
            Rounds that were published.

        Raises:
            BrokenPromise: if one is not what it must be.
        """
        finished = [each.number for each in await self.store.finished_rounds(self.task, limit=99)]
        require(sorted(self.rounds) == finished, f"{finished} ended, {self.rounds}")
        published = 0
        for number in finished:
            record = self.rounds[number]
            if record.decision == "published":
                published += 1
                await self._check_published(record)
            else:
                self._check_abandoned(record)
        return published

    async def _check_published(self, record: FinishedRound) -> None:
        shared, number = record.shared, record.number
        if shared is None or record.model_version is None:
            require(False, f"round {number} was published without a shared part")
            return
        params = RoundParameters.from_bytes(shared.params_bytes)
        names = [name for name, _ in shared.members]
        groups = [[names[position] for position in positions] for positions in shared.sums]
        inside = [name for group in groups for name in group]
        outside = [name for name, reason in shared.excluded if reason]
        admitted = self.story.admitted[number]
        require(
            sorted(inside + outside) == sorted(admitted),
            f"round {number}: in {inside}, out {shared.excluded}, admitted {sorted(admitted)}",
        )
        unfair = set(outside) - self.story.damaged[number]
        if number not in self.story.attacked | self.story.lied:
            require(not unfair, f"round {number} left out {shared.excluded}")
            require(not shared.liars, f"round {number} accuses {shared.liars}")
        require(set(shared.liars) <= {ops.LIAR}, f"round {number} accuses honest {shared.liars}")
        await self._check_model(record, groups)
        released = self.logs[params.sha256].selections
        require(
            released == {bytes.fromhex(shared.selection_sha256)},
            f"round {number} published another selection than was released",
        )

    async def _check_model(self, record: FinishedRound, groups: Sequence[Iterable[str]]) -> None:
        """The model is the old one plus the mean by the definition of the encoding."""
        version = record.model_version or 0
        base, after = await self._state(record.base_version), await self._weights(version)
        admitted = self.story.admitted[record.number]
        every = [admitted[name] for group in groups for name in group]
        total = sum(
            np.rint(vector.astype(np.float64) * 2.0**FRACTION_BITS).astype(np.int64)
            for vector in every
        )
        mean = np.asarray(total).astype(np.float64) * 2.0**-FRACTION_BITS / len(every)
        moved = base + mean
        expected = moved.astype(np.float32)
        if self.is_grouped:
            is_right = np.allclose(after, expected, rtol=0, atol=GROUPS_TOLERANCE)
        else:
            kept = await self._state(version)
            is_right = after.tobytes() == expected.tobytes() and kept.tobytes() == moved.tobytes()
        require(bool(is_right), f"round {record.number} published {after}, not {expected}")

    def _check_abandoned(self, record: FinishedRound) -> None:
        number = record.number
        usable = set(self.story.admitted[number]) - self.story.damaged[number]
        excused = number in self.story.attacked | self.story.troubled_lies | self.story.given_up
        few = len(usable) < ops.MIN_MEMBERS
        require(excused or few, f"round {number} was abandoned: {record.reason}")

    async def _state(self, version: int) -> NDArray[np.float64]:
        """The weights as the aggregator keeps them for the next round."""
        model = await self.store.model(self.task, version)
        if not model.state_sha256:
            return (await self._weights(version)).astype(np.float64)
        return decode_state(
            await self.blobs.get(state_blob(self.task, model.round_number, model.state_sha256))
        ).weights

    async def _weights(self, version: int) -> Vector:
        model = await self.store.model(self.task, version)
        data = await self.blobs.get(model_blob(self.task, model.round_number, model.sha256))
        weights: Vector = decode_model(data)[0]["w"]
        return weights
