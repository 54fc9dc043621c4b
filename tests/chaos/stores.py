"""The stores as a simulation uses them: they fail when told, watch the fences, obey its clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from server.config.durability import Durability
from server.round.ports import CommitResult, Contribution, FinishedRound, Lease, ModelVersion
from server.round.state import Phase, Round
from server.storage.blobs import BlobStore
from server.storage.keys import task_prefix
from server.storage.redis_client import Argument, RedisClient, Reply
from server.storage.redis_store import RedisRoundStore
from tests.chaos.faults import FaultPoint
from tests.chaos.promise import require

CLOCK_KEY: Final = "test:clock"
CLOCK: Final = f"local function now_ms() return tonumber(redis.call('GET', '{CLOCK_KEY}')) end"


@dataclass(frozen=True, kw_only=True)
class Sabotage:
    """Defects put in on purpose, to see that the simulation finds them.

    Attributes:
        scripts: text of the store's scripts -> what it is replaced with.
        doubled_contribution: the aggregation gives the first contribution twice its weight.
        dropped_contribution: the aggregation does not read the last of several contributions.
        late_charge: what a round costs is charged by a step of its own, after the round's end.
        boundless_budget: the driver is told of a budget without end.
    """

    scripts: Mapping[str, str] = field(default_factory=dict)
    doubled_contribution: bool = False
    dropped_contribution: bool = False
    late_charge: bool = False
    boundless_budget: bool = False


SOUND: Final = Sabotage()


@dataclass
class Releases:
    """Rounds whose contributions somebody began to combine, and those that somebody meant to."""

    computed: set[int] = field(default_factory=set)
    admitted: set[int] = field(default_factory=set)


class FaultyClient(RedisClient):
    """Every command passes a fault point."""

    def __init__(self, url: str, *, faults: FaultPoint, sabotage: Sabotage) -> None:
        super().__init__(url, clock=CLOCK)
        self.faults = faults
        self._scripts = sabotage.scripts

    async def command(self, *args: Argument) -> Reply:
        if args[0] == "SCRIPT LOAD":  # happens at first use only: no place for a repeatable fault
            script = str(args[1])
            for sound, broken in self._scripts.items():
                script = script.replace(sound, broken)
            return await super().command(args[0], script)
        return await self.faults.around(lambda: super(FaultyClient, self).command(*args))


class FaultyBlobs(BlobStore):
    """What the driver does to blobs passes a fault point."""

    def __init__(self, url: str, *, faults: FaultPoint) -> None:
        super().__init__(url, durability=Durability.PROCESS, num_threads=1)
        self._faults = faults

    async def put(self, key: str, data: bytes | memoryview) -> None:
        await self._faults.around(lambda: super(FaultyBlobs, self).put(key, data))

    async def get(self, key: str) -> bytes:
        return await self._faults.around(lambda: super(FaultyBlobs, self).get(key))

    async def delete_prefix(self, prefix: str) -> int:
        return await self._faults.around(lambda: super(FaultyBlobs, self).delete_prefix(prefix))


@dataclass
class Fences:
    """Which driver was given which fencing token."""

    owners: dict[int, str] = field(default_factory=dict)

    @property
    def newest(self) -> int:
        return max(self.owners, default=0)

    def note(self, lease: Lease) -> None:
        owner = self.owners.setdefault(lease.fence, lease.owner)
        require(owner == lease.owner, f"{owner} and {lease.owner} have token {lease.fence}")


class WatchedStore(RedisRoundStore):
    """Sees that nobody commits with an outdated fencing token, and which rounds go to be computed.

    Args:
        client: of one coordinator.
        fences: shared by the coordinators.
        releases: shared by the coordinators.
        sabotage: where it says so, rounds are charged in a step of their own.
    """

    def __init__(
        self,
        client: FaultyClient,
        *,
        fences: Fences,
        releases: Releases | None = None,
        sabotage: Sabotage = SOUND,
    ) -> None:
        super().__init__(client)
        self._faulty = client
        self._fences = fences
        self._releases = releases or Releases()
        self._sabotage = sabotage

    async def acquire_lease(self, task: str, *, owner: str, ttl_ms: int) -> Lease | None:
        lease = await super().acquire_lease(task, owner=owner, ttl_ms=ttl_ms)
        if lease is not None:
            self._fences.note(lease)
        return lease

    async def commit(self, round_: Round, *, lease: Lease) -> CommitResult:
        newest = self._fences.newest
        if round_.phase is Phase.AGGREGATING:
            self._releases.admitted.add(round_.number)
        return self._judged(await super().commit(round_, lease=lease), lease, newest)

    async def open_round(
        self, round_: Round, *, ledger_revision: int, lease: Lease
    ) -> CommitResult:
        newest = self._fences.newest
        result = await super().open_round(round_, ledger_revision=ledger_revision, lease=lease)
        return self._judged(result, lease, newest)

    async def exhaust(
        self, round_: Round, *, record: FinishedRound, ledger_revision: int, lease: Lease
    ) -> CommitResult:
        newest = self._fences.newest
        result = await super().exhaust(
            round_, record=record, ledger_revision=ledger_revision, lease=lease
        )
        return self._judged(result, lease, newest)

    async def open_cohort(
        self, round_: Round, *, cohort: Sequence[str], lease: Lease
    ) -> CommitResult:
        newest = self._fences.newest
        result = await super().open_cohort(round_, cohort=cohort, lease=lease)
        return self._judged(result, lease, newest)

    async def finish(
        self, round_: Round, *, record: FinishedRound, model: ModelVersion | None, lease: Lease
    ) -> CommitResult:
        newest = self._fences.newest
        result = await super().finish(round_, record=record, model=model, lease=lease)
        cost = record.privacy
        if self._sabotage.late_charge and cost is not None and cost.is_charged:
            charges = task_prefix(round_.task) + "charges"
            await self._faulty.command("HINCRBY", charges, cost.charge, 1)
        return self._judged(result, lease, newest)

    def _judged(self, result: CommitResult, lease: Lease, newest: int) -> CommitResult:
        outdated = result is CommitResult.COMMITTED and lease.fence < newest
        require(not outdated, f"committed with token {lease.fence} after {newest} was given")
        return result


class SabotagedStore(RedisRoundStore):
    """What an aggregation reads, wrongly where the sabotage says so."""

    def __init__(self, client: RedisClient, *, sabotage: Sabotage) -> None:
        super().__init__(client)
        self._sabotage = sabotage

    async def contributions(self, task: str, round_number: int) -> tuple[Contribution, ...]:
        found = await super().contributions(task, round_number)
        if self._sabotage.doubled_contribution:
            return (replace(found[0], num_samples=2 * found[0].num_samples), *found[1:])
        if self._sabotage.dropped_contribution and len(found) > 1:
            return found[:-1]
        return found
