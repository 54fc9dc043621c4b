"""A round store of a test, its clock, and shortcuts through a round."""

from dataclasses import replace
from typing import Final

from server.round.ports import (
    CheckInVerdict,
    CommitResult,
    FinishedRound,
    Lease,
    ModelVersion,
    Submission,
)
from server.round.round_privacy import RoundPrivacy
from server.round.state import CohortSelected, Phase, Round, step
from server.storage.redis_client import RedisClient
from server.storage.redis_store import RedisRoundStore

TASK: Final = "keyboard"
CLOCK: Final = "local function now_ms() return tonumber(redis.call('GET', 'test:clock')) end"
MODEL: Final = ModelVersion(
    version=1,
    parent=None,
    round_number=None,
    sha256="00" * 32,
    size_bytes=100,
    dim=10,
    created_at_ms=1,
    metrics={},
)


class Bench:
    """A store, its clock, and shortcuts through a round."""

    def __init__(self, client: RedisClient) -> None:
        self.client = client
        self.store = RedisRoundStore(client, receipt_retention_s=60)

    async def set_clock(self, now_ms: int) -> None:
        await self.client.command("SET", "test:clock", now_ms)

    async def lead(self, owner: str = "a", ttl_ms: int = 1_000) -> Lease:
        lease = await self.store.acquire_lease(TASK, owner=owner, ttl_ms=ttl_ms)
        assert lease is not None
        return lease

    async def open_round(self, lease: Lease, number: int = 1) -> Round:
        round_ = new_round(number)
        assert await self.store.commit(round_, lease=lease) is CommitResult.COMMITTED
        return round_

    async def collecting(self, lease: Lease, cohort: tuple[str, ...] = ("d1", "d2", "d3")) -> Round:
        for device in cohort:
            await self.check_in(device)
        round_ = await self.open_round(lease)
        after = step(round_, CohortSelected(at_ms=100, cohort_size=len(cohort)))
        result = await self.store.open_cohort(after, cohort=cohort, lease=lease)
        assert result is CommitResult.COMMITTED
        return after

    async def check_in(self, device: str, check_in_id: str = "c1") -> CheckInVerdict:
        answer = await self.store.check_in(
            TASK, device_id=device, check_in_id=check_in_id, ttl_ms=500, wanted=3
        )
        return answer.verdict


def new_round(number: int = 1, *, base: int = 1, privacy: RoundPrivacy | None = None) -> Round:
    return Round(
        task=TASK,
        number=number,
        version=1,
        phase=Phase.SELECTING,
        base_version=base,
        reporting_goal=2,
        min_contributions=1,
        collection_timeout_ms=1_000,
        opened_at_ms=0,
        phase_since_ms=0,
        seed=0,
        traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        privacy=privacy,
    )


def submission(device_id: str = "d1", **changes: object) -> Submission:
    value = Submission(
        task=TASK,
        round_number=1,
        device_id=device_id,
        submission_id="s1",
        model_version=1,
        num_samples=5,
        payload_bytes=7,
        digest=bytes(range(16)),
        loss_before=0.5,
        loss_after=None,
        inline_payload=b"payload",
    )
    return replace(value, **changes)  # type: ignore[arg-type]  # tests name the fields


def record_of(round_: Round, contributors: tuple[str, ...]) -> FinishedRound:
    return FinishedRound(
        task=TASK,
        number=round_.number,
        decision=round_.phase.value,
        reason="",
        base_version=round_.base_version,
        model_version=2 if round_.phase is Phase.PUBLISHED else None,
        cohort_size=3,
        accepted=len(contributors),
        contributors=contributors,
        rejected=0,
        excluded=0,
        started_at_ms=0,
        finished_at_ms=1,
        bytes_up=14,
        traceparent="",
        metrics={"update_norm": 1.0},
    )
