"""The privacy ledger in the round store: what is reserved, charged and released, and with what.

Each change is one step with the change of the round that it belongs to; the tests look at the
ledger after every step.
"""

import asyncio
import math
from dataclasses import replace

import pytest

from privacy.budget import LedgerState
from privacy.charge import Charge, Sampling
from server.errors import UnknownTask
from server.round.ports import CheckInVerdict, CommitResult, Lease, ModelVersion
from server.round.round_privacy import RoundCost, RoundPrivacy
from server.round.state import (
    ALLOWED,
    COMPUTING,
    AbandonReason,
    AggregationFailed,
    BaseVersionChanged,
    CandidateFailed,
    CandidateModel,
    CandidatePassed,
    CandidateReady,
    CohortSelected,
    DeadlineReached,
    GoalReached,
    Phase,
    Round,
    step,
)
from server.storage.keys import task_prefix
from tests.contract.round_bench import MODEL, TASK, Bench, new_round, record_of, submission

CHARGE = Charge(noise_multiplier=2.0).to_text()
POISSON = Charge(
    noise_multiplier=1.5, sampling=Sampling.POISSON, sampling_probability=0.1
).to_text()
PRIVACY = RoundPrivacy(charge=CHARGE, clipping_norm=0.5, sensitivity=1.0, expected_updates=2.0)
CANDIDATE = CandidateModel(sha256="ab", size_bytes=3, excluded=0, metrics={"update_norm": 1.0})
COHORT = ("d1", "d2", "d3")


async def opened(bench: Bench, lease: Lease, number: int = 1, *, base: int = 1) -> Round:
    round_ = new_round(number, base=base, privacy=PRIVACY)
    revision = (await bench.store.ledger(TASK)).revision
    result = await bench.store.open_round(round_, ledger_revision=revision, lease=lease)
    assert result is CommitResult.COMMITTED
    return round_


async def collecting(bench: Bench, lease: Lease, number: int = 1, *, base: int = 1) -> Round:
    for device in COHORT:
        await bench.check_in(device, f"c{number}")
    round_ = await opened(bench, lease, number, base=base)
    after = step(round_, CohortSelected(at_ms=0, cohort_size=len(COHORT)))
    result = await bench.store.open_cohort(after, cohort=COHORT, lease=lease)
    assert result is CommitResult.COMMITTED
    return after


async def aggregating(bench: Bench, lease: Lease, number: int = 1, *, base: int = 1) -> Round:
    round_ = await collecting(bench, lease, number, base=base)
    for device in COHORT[:2]:
        await bench.store.admit(
            [submission(device, round_number=number, model_version=round_.base_version)]
        )
    return await stored(bench, step(round_, GoalReached(at_ms=1, accepted=2)), lease)


async def validating(
    bench: Bench, lease: Lease, number: int = 1, *, base: int = 1, norm: float | None = None
) -> Round:
    round_ = await aggregating(bench, lease, number, base=base)
    candidate = replace(CANDIDATE, next_clipping_norm=norm)
    return await stored(bench, step(round_, CandidateReady(at_ms=2, candidate=candidate)), lease)


async def stored(bench: Bench, after: Round, lease: Lease) -> Round:
    assert await bench.store.commit(after, lease=lease) is CommitResult.COMMITTED
    return after


def version_of(number: int, *, norm: float | None = None) -> ModelVersion:
    return replace(
        MODEL, version=number + 1, parent=number, round_number=number, clipping_norm=norm
    )


async def ended(
    bench: Bench, after: Round, lease: Lease, model: ModelVersion | None = None
) -> CommitResult:
    found = await bench.store.contributions(TASK, after.number)
    record = record_of(after, tuple(one.device_id for one in found))
    return await bench.store.finish(after, record=record, model=model, lease=lease)


async def published(
    bench: Bench, lease: Lease, number: int = 1, *, norm: float | None = None
) -> Round:
    round_ = await validating(bench, lease, number, base=number, norm=norm)
    after = step(round_, CandidatePassed(at_ms=3))
    version = version_of(number, norm=norm)
    assert await ended(bench, after, lease, version) is CommitResult.COMMITTED
    return after


async def test_a_new_task_has_spent_nothing(bench: Bench) -> None:
    assert await bench.store.ledger(TASK) == LedgerState()
    assert await bench.store.participations(TASK) == {}


async def test_an_unknown_task_has_no_ledger(bench: Bench) -> None:
    with pytest.raises(UnknownTask, match="no task named other"):
        await bench.store.ledger("other")


async def test_a_round_is_reserved_by_the_step_that_opens_it(bench: Bench) -> None:
    round_ = await opened(bench, await bench.lead())
    snapshot, ledger = await bench.store.snapshot(TASK), await bench.store.ledger(TASK)
    assert snapshot.round == round_
    assert ledger == LedgerState(reserved={1: CHARGE}, revision=1)


async def test_a_round_that_is_not_private_cannot_be_reserved(bench: Bench) -> None:
    lease = await bench.lead()
    with pytest.raises(ValueError, match="round 1 must be private"):
        await bench.store.open_round(new_round(), ledger_revision=0, lease=lease)


async def test_nothing_is_opened_on_another_ledger_than_was_read(bench: Bench) -> None:
    lease = await bench.lead()
    round_ = new_round(privacy=PRIVACY)
    result = await bench.store.open_round(round_, ledger_revision=7, lease=lease)
    assert result is CommitResult.STALE
    assert (await bench.store.snapshot(TASK)).round is None
    assert await bench.store.ledger(TASK) == LedgerState()


async def test_opening_again_reserves_nothing_more(bench: Bench) -> None:
    lease = await bench.lead()
    round_ = await opened(bench, lease)
    before = await bench.store.ledger(TASK)
    for revision in (0, before.revision):  # as it was asked first; as who read it since would
        result = await bench.store.open_round(round_, ledger_revision=revision, lease=lease)
        assert result is CommitResult.STALE
    assert await bench.store.ledger(TASK) == before


async def test_a_fenced_leader_reserves_charges_and_releases_nothing(bench: Bench) -> None:
    old = await bench.lead("a")
    await bench.set_clock(1_001)
    new = await bench.lead("b")
    round_ = new_round(privacy=PRIVACY)
    result = await bench.store.open_round(round_, ledger_revision=0, lease=old)
    assert result is CommitResult.FENCED
    assert await bench.store.ledger(TASK) == LedgerState()
    await bench.set_clock(0)
    held = await validating(bench, new)
    before = await bench.store.ledger(TASK)
    after = step(held, CandidatePassed(at_ms=3))
    assert await ended(bench, after, old, version_of(1)) is CommitResult.FENCED
    assert await bench.store.ledger(TASK) == before


async def test_publishing_charges_the_reservation(bench: Bench) -> None:
    await published(bench, await bench.lead())
    ledger = await bench.store.ledger(TASK)
    assert (ledger.committed, ledger.reserved, ledger.uncharged) == ({CHARGE: 1}, {}, 0)
    assert (await bench.store.snapshot(TASK)).current_version == 2


async def test_publishing_twice_charges_once(bench: Bench) -> None:
    lease = await bench.lead()
    after = await published(bench, lease)
    before = await bench.store.ledger(TASK)
    assert await ended(bench, after, lease, version_of(1)) is not CommitResult.COMMITTED
    assert await bench.store.ledger(TASK) == before


async def test_two_that_publish_at_once_charge_once(bench: Bench) -> None:
    lease = await bench.lead()
    round_ = await validating(bench, lease)
    after = step(round_, CandidatePassed(at_ms=3))
    results = await asyncio.gather(*(ended(bench, after, lease, version_of(1)) for _ in range(5)))
    assert results.count(CommitResult.COMMITTED) == 1
    assert (await bench.store.ledger(TASK)).committed == {CHARGE: 1}


async def test_what_cannot_be_published_stays_reserved(bench: Bench) -> None:
    lease = await bench.lead()
    await published(bench, lease)
    round_ = await validating(bench, lease, 2, base=2)
    await bench.store.rollback(TASK, 1)
    after = step(round_, CandidatePassed(at_ms=3))
    assert await ended(bench, after, lease, version_of(2)) is CommitResult.BASE_CHANGED
    ledger = await bench.store.ledger(TASK)
    assert (ledger.committed, ledger.reserved) == ({CHARGE: 1}, {2: CHARGE})


MOVED = BaseVersionChanged(at_ms=5, current_version=9)


async def ending_from(bench: Bench, lease: Lease, phase: Phase) -> Round:
    match phase:
        case Phase.SELECTING:
            return step(await opened(bench, lease), MOVED)
        case Phase.COLLECTING:
            late = DeadlineReached(at_ms=1_000_000, accepted=0)
            return step(await collecting(bench, lease), late)
        case Phase.FREEZING | Phase.CHECKING:
            round_ = await aggregating(bench, lease)
            shared = replace(round_, version=round_.version + 1, phase=phase)
            return step(await stored(bench, shared, lease), MOVED)
        case Phase.AGGREGATING:
            failed = AggregationFailed(at_ms=5, detail="no payload")
            return step(await aggregating(bench, lease), failed)
        case _:
            failed_check = CandidateFailed(at_ms=5, detail="too long")
            return step(await validating(bench, lease), failed_check)


@pytest.mark.parametrize("phase", [phase for phase in Phase if ALLOWED[phase]])
async def test_an_abandoned_round_is_charged_from_aggregating_on(
    bench: Bench, phase: Phase
) -> None:
    lease = await bench.lead()
    after = await ending_from(bench, lease, phase)
    assert after.phase is Phase.ABANDONED
    assert await ended(bench, after, lease) is CommitResult.COMMITTED
    ledger = await bench.store.ledger(TASK)
    assert ledger.reserved == {}
    assert ledger.committed == ({CHARGE: 1} if phase in COMPUTING else {})


@pytest.mark.parametrize("phase", [Phase.SELECTING, Phase.COLLECTING, Phase.AGGREGATING])
async def test_uploads_that_are_releases_are_charged_from_collecting_on(
    bench: Bench, phase: Phase
) -> None:
    lease = await bench.lead()
    after = await ending_from(bench, lease, phase)
    local = replace(after, privacy=replace(PRIVACY, noise="device"))
    assert await ended(bench, local, lease) is CommitResult.COMMITTED
    ledger = await bench.store.ledger(TASK)
    assert ledger.reserved == {}
    assert ledger.committed == ({} if phase is Phase.SELECTING else {CHARGE: 1})


async def test_what_is_stored_decides_and_not_the_caller(bench: Bench) -> None:
    """A leader that thinks that the round still collects cannot have it released."""
    lease = await bench.lead()
    earlier = await collecting(bench, lease)
    await stored(bench, step(earlier, DeadlineReached(at_ms=10**6, accepted=1)), lease)
    wrong = step(earlier, MOVED)
    assert await ended(bench, wrong, lease) is CommitResult.STALE
    claimed = replace(wrong, version=wrong.version + 1)
    assert await ended(bench, claimed, lease) is CommitResult.COMMITTED
    assert (await bench.store.ledger(TASK)).committed == {CHARGE: 1}


async def test_a_lost_reservation_is_charged_all_the_same(bench: Bench) -> None:
    lease = await bench.lead()
    round_ = await validating(bench, lease)
    await bench.client.command("DEL", task_prefix(TASK) + "reserved")
    after = step(round_, CandidatePassed(at_ms=3))
    assert await ended(bench, after, lease, version_of(1)) is CommitResult.COMMITTED
    assert (await bench.store.ledger(TASK)).committed == {CHARGE: 1}


async def test_time_releases_nothing(bench: Bench) -> None:
    await collecting(bench, await bench.lead())
    before = await bench.store.ledger(TASK)
    await bench.set_clock(10**12)
    await bench.lead("b")
    await bench.store.snapshot(TASK)
    assert await bench.store.ledger(TASK) == before


async def test_a_version_without_a_charge_is_told(bench: Bench) -> None:
    lease = await bench.lead()
    await bench.collecting(lease)
    round_ = (await bench.store.snapshot(TASK)).round
    assert round_ is not None
    for event in (
        DeadlineReached(at_ms=10**6, accepted=1),
        CandidateReady(at_ms=2, candidate=CANDIDATE),
    ):
        round_ = await stored(bench, step(round_, event), lease)
    after = step(round_, CandidatePassed(at_ms=3))
    assert await ended(bench, after, lease, version_of(1)) is CommitResult.COMMITTED
    assert (await bench.store.ledger(TASK)).uncharged == 1
    await published(bench, lease, 2)
    ledger = await bench.store.ledger(TASK)
    assert (ledger.uncharged, ledger.committed) == (1, {CHARGE: 1})


async def test_charges_are_counted_apart(bench: Bench) -> None:
    lease = await bench.lead()
    await published(bench, lease)
    await published(bench, lease, 2)
    other = replace(PRIVACY, charge=POISSON)
    round_ = replace(new_round(3, base=3), privacy=other, min_contributions=0)
    revision = (await bench.store.ledger(TASK)).revision
    result = await bench.store.open_round(round_, ledger_revision=revision, lease=lease)
    assert result is CommitResult.COMMITTED
    ledger = await bench.store.ledger(TASK)
    assert (ledger.committed, ledger.reserved) == ({CHARGE: 2}, {3: POISSON})


async def test_publishing_moves_the_clipping_norm_and_a_rollback_moves_it_back(
    bench: Bench,
) -> None:
    lease = await bench.lead()
    await published(bench, lease, norm=math.pi)
    assert (await bench.store.ledger(TASK)).clipping_norm == math.pi
    await published(bench, lease, 2, norm=math.e)
    assert (await bench.store.ledger(TASK)).clipping_norm == math.e
    await bench.store.rollback(TASK, 2)
    assert (await bench.store.ledger(TASK)).clipping_norm == math.pi
    await bench.store.rollback(TASK, 1)
    assert (await bench.store.ledger(TASK)).clipping_norm is None


async def test_an_abandoned_candidate_does_not_move_the_clipping_norm(bench: Bench) -> None:
    lease = await bench.lead()
    round_ = await validating(bench, lease, norm=math.pi)
    await ended(bench, step(round_, CandidateFailed(at_ms=5, detail="too long")), lease)
    assert (await bench.store.ledger(TASK)).clipping_norm is None


async def test_the_ledger_counts_the_busiest_device(bench: Bench) -> None:
    lease = await bench.lead()
    seen = []
    for number, cohort in enumerate((("d1", "d2"), ("d3",), ("d1", "d3"), ("d1",)), start=1):
        for device in cohort:
            await bench.check_in(device, f"c{number}")
        round_ = await opened(bench, lease, number)
        after = step(round_, CohortSelected(at_ms=0, cohort_size=len(cohort)))
        before = (await bench.store.ledger(TASK)).revision
        await bench.store.open_cohort(after, cohort=cohort, lease=lease)
        ledger = await bench.store.ledger(TASK)
        seen.append((ledger.max_participations, ledger.revision - before))
        await ended(bench, step(after, MOVED), lease)
    assert seen == [(1, 1), (1, 0), (2, 1), (3, 1)]
    assert await bench.store.participations(TASK) == {1: 1, 2: 1, 3: 1}


async def test_participations_of_an_older_release_are_counted_from_now_on(bench: Bench) -> None:
    await bench.client.command("HSET", task_prefix(TASK) + "devices", "d1", "9:4")
    await collecting(bench, await bench.lead(), 1)
    assert await bench.store.participations(TASK) == {1: 2, 5: 1}
    assert (await bench.store.ledger(TASK)).max_participations == 5


async def test_the_noise_key_is_made_once(bench: Bench) -> None:
    keys = await asyncio.gather(*(bench.store.noise_key(TASK) for _ in range(5)))
    assert len(set(keys)) == 1
    assert len(keys[0]) == 32
    assert await bench.store.noise_key("other") != keys[0]


async def test_an_assignment_carries_the_rounds_privacy(bench: Bench) -> None:
    await collecting(bench, await bench.lead())
    answer = await bench.store.check_in(
        TASK, device_id="d1", check_in_id="c1", ttl_ms=500, wanted=3
    )
    assert answer.privacy == PRIVACY


async def test_a_private_round_and_its_cost_come_back_as_they_were_stored(bench: Bench) -> None:
    lease = await bench.lead()
    round_ = await validating(bench, lease, norm=0.25)
    assert (await bench.store.snapshot(TASK)).round == round_
    after = step(round_, CandidatePassed(at_ms=3))
    found = await bench.store.contributions(TASK, 1)
    cost = RoundCost(charge=CHARGE, is_charged=True, clipping_norm=0.5, counts={CHARGE: 1})
    record = replace(record_of(after, tuple(one.device_id for one in found)), privacy=cost)
    await bench.store.finish(after, record=record, model=version_of(1), lease=lease)
    assert await bench.store.unaudited(TASK) == (record,)
    (summary,) = await bench.store.finished_rounds(TASK, limit=9)
    assert summary.privacy is None


def refused(number: int = 1) -> Round:
    return replace(
        new_round(number, privacy=PRIVACY),
        phase=Phase.ABANDONED,
        reason=AbandonReason.BUDGET_EXHAUSTED,
        detail="too much",
    )


async def exhausted(bench: Bench, lease: Lease, number: int = 1) -> CommitResult:
    round_ = refused(number)
    revision = (await bench.store.ledger(TASK)).revision
    return await bench.store.exhaust(
        round_, record=record_of(round_, ()), ledger_revision=revision, lease=lease
    )


async def test_a_refused_round_ends_the_task_and_is_told(bench: Bench) -> None:
    lease = await bench.lead()
    await bench.check_in("d9")
    assert await exhausted(bench, lease) is CommitResult.COMMITTED
    ledger, snapshot = await bench.store.ledger(TASK), await bench.store.snapshot(TASK)
    assert (ledger.is_exhausted, snapshot.is_exhausted) == (True, True)
    assert (ledger.committed, ledger.reserved) == ({}, {})
    assert snapshot.round == refused()
    assert [record.number for record in await bench.store.unaudited(TASK)] == [1]
    assert [record.number for record in await bench.store.finished_rounds(TASK, limit=9)] == [1]
    for device in ("d1", "d9"):
        assert await bench.check_in(device) is CheckInVerdict.BUDGET_EXHAUSTED


async def test_a_refusal_rests_on_the_ledger_that_was_read(bench: Bench) -> None:
    lease = await bench.lead()
    round_ = refused()
    result = await bench.store.exhaust(
        round_, record=record_of(round_, ()), ledger_revision=7, lease=lease
    )
    assert result is CommitResult.STALE
    assert not (await bench.store.snapshot(TASK)).is_exhausted


async def test_a_refusal_repeated_is_told_once(bench: Bench) -> None:
    lease = await bench.lead()
    assert await exhausted(bench, lease) is CommitResult.COMMITTED
    assert await exhausted(bench, lease) is CommitResult.STALE
    assert len(await bench.store.finished_rounds(TASK, limit=9)) == 1


@pytest.mark.parametrize("is_private", [False, True])
async def test_the_next_round_that_opens_ends_the_exhaustion(
    bench: Bench, is_private: bool
) -> None:
    lease = await bench.lead()
    await exhausted(bench, lease)
    if is_private:
        await opened(bench, lease, 2)
    else:
        await bench.open_round(lease, 2)
    assert not (await bench.store.snapshot(TASK)).is_exhausted
    assert not (await bench.store.ledger(TASK)).is_exhausted
    assert await bench.check_in("d1") is CheckInVerdict.WAITING


async def test_a_finished_task_is_finished_and_not_exhausted(bench: Bench) -> None:
    lease = await bench.lead()
    await published(bench, lease)
    await published(bench, lease, 2)
    await exhausted(bench, lease, 3)
    assert await bench.check_in("d1") is CheckInVerdict.TASK_FINISHED


async def test_an_empty_cohort_of_a_sampled_round_is_complete(bench: Bench) -> None:
    lease = await bench.lead()
    sampled = replace(PRIVACY, charge=POISSON)
    round_ = replace(new_round(), privacy=sampled, min_contributions=0)
    await bench.store.open_round(round_, ledger_revision=0, lease=lease)
    await bench.check_in("d1")
    after = step(round_, CohortSelected(at_ms=0, cohort_size=0))
    result = await bench.store.open_cohort(after, cohort=(), lease=lease)
    assert result is CommitResult.COMMITTED
    assert await bench.check_in("d1") is CheckInVerdict.NOT_SELECTED
    assert (await bench.store.ledger(TASK)).max_participations == 0
    round_ = await stored(bench, step(after, GoalReached(at_ms=1, accepted=0)), lease)
    round_ = await stored(bench, step(round_, CandidateReady(at_ms=2, candidate=CANDIDATE)), lease)
    done = step(round_, CandidatePassed(at_ms=3))
    assert await ended(bench, done, lease, version_of(1)) is CommitResult.COMMITTED
    assert (await bench.store.ledger(TASK)).committed == {POISSON: 1}
