"""One contract for the round store, held by both servers it runs on.

The embedded store is Valkey; the external one is Redis 6.2, the oldest version supported.
"""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from server.errors import StoreUnavailable, UnknownModelVersion, UnknownTask
from server.round.ports import (
    AdmissionVerdict,
    BlobNotFound,
    CheckInVerdict,
    CommitResult,
    Lease,
    ModelVersion,
)
from server.round.shared_round import SharedRound
from server.round.state import (
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
from server.storage.redis_client import RedisClient
from server.storage.redis_store import RedisRoundStore
from tests.contract.round_bench import MODEL, TASK, Bench, record_of, submission


async def test_a_new_task_has_its_first_version_and_no_round(bench: Bench) -> None:
    snapshot = await bench.store.snapshot(TASK)
    assert (snapshot.current_version, snapshot.latest_version) == (1, 1)
    assert snapshot.round is None
    assert snapshot.published_rounds == 0


async def test_creating_a_task_again_keeps_what_is_there(bench: Bench) -> None:
    await bench.store.create_task(TASK, model=replace(MODEL, sha256="11" * 32), num_rounds=9)
    assert (await bench.store.model(TASK, 1)).sha256 == MODEL.sha256


async def test_an_unknown_task_is_refused(bench: Bench) -> None:
    with pytest.raises(UnknownTask, match="no task named other"):
        await bench.store.snapshot("other")


async def test_one_owner_leads_until_its_lease_ends(bench: Bench) -> None:
    first = await bench.lead("a", ttl_ms=1_000)
    assert await bench.store.acquire_lease(TASK, owner="b", ttl_ms=1_000) is None
    await bench.set_clock(900)
    assert await bench.lead("a", ttl_ms=1_000) == first
    await bench.set_clock(1_899)
    assert await bench.store.acquire_lease(TASK, owner="b", ttl_ms=1_000) is None
    await bench.set_clock(1_901)
    second = await bench.lead("b")
    assert second.fence > first.fence


async def test_a_lease_given_back_is_free_at_once(bench: Bench) -> None:
    first = await bench.lead("a")
    await bench.store.release_lease(TASK, first)
    assert (await bench.lead("b")).fence > first.fence


async def test_an_old_leader_cannot_give_back_the_lease_of_the_new_one(bench: Bench) -> None:
    first = await bench.lead("a")
    await bench.set_clock(1_001)
    await bench.lead("b")
    await bench.store.release_lease(TASK, first)
    assert await bench.store.acquire_lease(TASK, owner="c", ttl_ms=10) is None


async def test_a_fenced_leader_cannot_commit(bench: Bench) -> None:
    old = await bench.lead("a")
    round_ = await bench.collecting(old)
    await bench.set_clock(1_001)
    await bench.lead("b")
    after = step(round_, GoalReached(at_ms=200, accepted=2))
    assert await bench.store.commit(after, lease=old) is CommitResult.FENCED
    assert (await bench.store.snapshot(TASK)).round == round_


async def test_a_commit_on_a_changed_round_is_stale(bench: Bench) -> None:
    lease = await bench.lead()
    round_ = await bench.collecting(lease)
    after = step(round_, GoalReached(at_ms=200, accepted=2))
    assert await bench.store.commit(after, lease=lease) is CommitResult.COMMITTED
    assert await bench.store.commit(after, lease=lease) is CommitResult.STALE
    assert (await bench.store.snapshot(TASK)).round == after


async def test_a_round_comes_back_as_it_was_stored(bench: Bench) -> None:
    lease = await bench.lead()
    round_ = step(await bench.collecting(lease), DeadlineReached(at_ms=1_100, accepted=1))
    assert await bench.store.commit(round_, lease=lease) is CommitResult.COMMITTED
    candidate = CandidateModel(sha256="ab", size_bytes=3, excluded=1, metrics={"x": 0.1})
    round_ = step(round_, CandidateReady(at_ms=1_200, candidate=candidate))
    assert await bench.store.commit(round_, lease=lease) is CommitResult.COMMITTED
    assert (await bench.store.snapshot(TASK)).round == round_


SHARED = SharedRound(
    parameters="0a0b",
    members=(("d1", "01" * 32), ("d2", "02" * 32)),
    set_sha256="5e",
    mode="checked",
    sums=((0, 1),),
    selection_sha256="5f",
    excluded=(("d3", "norm"),),
    holders=(1, 2, 3),
    liars=(2,),
)


async def test_a_shared_round_comes_back_as_it_was_stored(bench: Bench) -> None:
    lease = await bench.lead()
    round_ = await bench.open_round(lease)
    candidate = CandidateModel(sha256="00", size_bytes=1, excluded=0, liars=(3,))
    stored = replace(round_, version=2, shared=SHARED, candidate=candidate, max_staleness=2)
    assert await bench.store.commit(stored, lease=lease) is CommitResult.COMMITTED
    assert (await bench.store.snapshot(TASK)).round == stored


async def test_an_assignment_carries_the_shared_rounds_parameters(bench: Bench) -> None:
    lease = await bench.lead()
    await bench.check_in("d1")
    event = CohortSelected(at_ms=0, cohort_size=1, shared=SharedRound(parameters="0a0b"))
    after = step(await bench.open_round(lease), event)
    await bench.store.open_cohort(after, cohort=("d1",), lease=lease)
    answer = await bench.store.check_in(
        TASK, device_id="d1", check_in_id="c1", ttl_ms=500, wanted=3
    )
    assert answer.shared_parameters == bytes.fromhex("0a0b")


@pytest.mark.parametrize(
    ("base", "max_staleness", "admitted"),
    [(1, 0, {1}), (3, 0, {3}), (3, 1, {2, 3}), (3, 9, {1, 2, 3})],
)
async def test_updates_from_as_many_versions_before_as_the_round_says_are_admitted(
    bench: Bench, base: int, max_staleness: int, admitted: set[int]
) -> None:
    lease = await bench.lead()
    cohort = ("d0", "d1", "d2", "d3", "d4")
    round_ = await bench.open_round(lease)
    changed = replace(
        round_,
        version=2,
        base_version=base,
        max_staleness=max_staleness,
        phase=Phase.COLLECTING,
        reporting_goal=5,
        deadline_ms=10**9,
    )
    result = await bench.store.open_cohort(changed, cohort=cohort, lease=lease)
    assert result is CommitResult.COMMITTED
    for version, device in enumerate(cohort[1:], start=1):
        (admission,) = await bench.store.admit([submission(device, model_version=version)])
        expected = (
            AdmissionVerdict.ACCEPTED
            if version in admitted
            else AdmissionVerdict.WRONG_MODEL_VERSION
        )
        assert admission.verdict is expected, version
    found = await bench.store.contributions(TASK, 1)
    assert {contribution.model_version for contribution in found} == admitted


async def test_a_submission_of_an_older_release_is_read_without_its_model_version(
    bench: Bench,
) -> None:
    line = "s1|" + "00" * 16 + "|5|7|1|0.5||100"
    await bench.client.command("HSET", f"{task_prefix(TASK)}submissions:1", "d1", line)
    (found,) = await bench.store.contributions(TASK, 1)
    assert (found.num_samples, found.accepted_at_ms, found.model_version) == (5, 100, 0)


async def test_a_finished_shared_round_is_told_whole_to_the_audit_log_only(bench: Bench) -> None:
    lease = await bench.lead()
    round_ = await bench.collecting(lease)
    ended = step(round_, DeadlineReached(at_ms=10**6, accepted=0))
    record = replace(record_of(ended, ()), shared=SHARED)
    result = await bench.store.finish(ended, record=record, model=None, lease=lease)
    assert result is CommitResult.COMMITTED
    assert await bench.store.unaudited(TASK) == (record,)
    (listed,) = await bench.store.finished_rounds(TASK, limit=1)
    assert listed == replace(record, contributors=(), shared=None)


async def test_no_round_opens_while_another_runs(bench: Bench) -> None:
    lease = await bench.lead()
    first = await bench.open_round(lease)
    second = replace(first, number=2)
    assert await bench.store.commit(second, lease=lease) is CommitResult.STALE


async def test_an_offer_stands_until_it_lapses(bench: Bench) -> None:
    lease = await bench.lead()
    await bench.open_round(lease)
    assert await bench.check_in("d1") is CheckInVerdict.WAITING
    await bench.set_clock(499)
    await bench.check_in("d2")
    assert {c.device_id for c in await bench.store.candidates(TASK)} == {"d1", "d2"}
    await bench.set_clock(501)
    assert (await bench.store.snapshot(TASK)).waiting == 1
    assert {c.device_id for c in await bench.store.candidates(TASK)} == {"d2"}


async def test_offers_that_lapsed_are_cleared_by_later_ones(bench: Bench) -> None:
    await bench.open_round(await bench.lead())
    for device in range(20):
        await bench.check_in(f"gone-{device}")
    await bench.set_clock(501)
    for device in range(2):
        await bench.check_in(f"here-{device}")
    prefix = f"fedagg:{{{TASK}}}:"
    assert await bench.client.command("ZCARD", f"{prefix}waiting") == 2
    assert await bench.client.command("HLEN", f"{prefix}offers") == 2


async def test_only_a_new_offer_that_completes_the_cohort_is_news(bench: Bench) -> None:
    await bench.open_round(await bench.lead())
    pubsub = bench.client.redis.pubsub()
    await pubsub.subscribe(f"fedagg:{{{TASK}}}:drive")
    for device in ("d1", "d2", "d3", "d3", "d1", "d4"):
        await bench.check_in(device)
    await bench.client.command("PUBLISH", f"fedagg:{{{TASK}}}:drive", "end")
    heard: list[bytes] = []
    while not heard or heard[-1] != b"end":
        message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)
        if message is not None:
            heard.append(message["data"])
    await pubsub.aclose()  # type: ignore[no-untyped-call]  # redis-py
    assert heard == [b"enough", b"enough", b"end"]  # at d3 and at d4, not when d3 and d1 renew


async def test_a_selected_device_gets_its_assignment(bench: Bench) -> None:
    await bench.collecting(await bench.lead())
    await bench.set_clock(300)
    answer = await bench.store.check_in(
        TASK, device_id="d1", check_in_id="c1", ttl_ms=500, wanted=3
    )
    assert answer.verdict is CheckInVerdict.ASSIGNED
    assert answer.round_number == 1
    assert answer.ttl_ms == 800
    assert answer.base_version == 1
    assert answer.traceparent.startswith("00-a")


async def test_a_retried_check_in_is_answered_alike_after_the_submission(bench: Bench) -> None:
    await bench.collecting(await bench.lead())
    await bench.store.admit([submission()])
    assert await bench.check_in("d1", "c1") is CheckInVerdict.ASSIGNED
    assert await bench.check_in("d1", "c2") is CheckInVerdict.NOT_SELECTED


async def test_a_device_that_lost_its_check_in_id_still_learns_of_its_selection(
    bench: Bench,
) -> None:
    await bench.collecting(await bench.lead())
    assert await bench.check_in("d1", "another") is CheckInVerdict.ASSIGNED


async def test_a_device_not_chosen_is_told_so_and_waits_for_the_next_round(bench: Bench) -> None:
    await bench.collecting(await bench.lead())
    assert await bench.check_in("d9") is CheckInVerdict.NOT_SELECTED
    assert {c.device_id for c in await bench.store.candidates(TASK)} == {"d9"}


async def test_selection_counts_as_participation(bench: Bench) -> None:
    lease = await bench.lead()
    round_ = await bench.collecting(lease)
    ended = step(round_, DeadlineReached(at_ms=1_100, accepted=0))
    result = await bench.store.finish(ended, record=record_of(ended, ()), model=None, lease=lease)
    assert result is CommitResult.COMMITTED
    await bench.check_in("d1", "c2")
    (candidate,) = await bench.store.candidates(TASK)
    assert (candidate.last_round, candidate.participations) == (1, 1)


async def test_an_update_is_admitted_once_and_its_receipt_never_changes(bench: Bench) -> None:
    await bench.collecting(await bench.lead())
    await bench.set_clock(150)
    (first,) = await bench.store.admit([submission()])
    assert first.verdict is AdmissionVerdict.ACCEPTED
    assert first.accepted_at_ms == 150
    await bench.set_clock(400)
    (again,) = await bench.store.admit([submission()])
    assert again.verdict is AdmissionVerdict.DUPLICATE
    assert again.accepted_at_ms == 150
    assert (await bench.store.snapshot(TASK)).accepted == 1


async def test_concurrent_duplicates_count_once(bench: Bench) -> None:
    await bench.collecting(await bench.lead())
    answers = await asyncio.gather(*(bench.store.admit([submission()]) for _ in range(50)))
    verdicts = [answer[0].verdict for answer in answers]
    assert verdicts.count(AdmissionVerdict.ACCEPTED) == 1
    assert verdicts.count(AdmissionVerdict.DUPLICATE) == 49
    assert (await bench.store.snapshot(TASK)).accepted == 1


async def test_duplicates_in_one_batch_count_once(bench: Bench) -> None:
    await bench.collecting(await bench.lead())
    verdicts = [a.verdict for a in await bench.store.admit([submission(), submission()])]
    assert verdicts == [AdmissionVerdict.ACCEPTED, AdmissionVerdict.DUPLICATE]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"digest": bytes(16)}, AdmissionVerdict.CONFLICT),
        ({"submission_id": "s"}, AdmissionVerdict.ALREADY_CONTRIBUTED),
        ({"submission_id": "s2"}, AdmissionVerdict.ALREADY_CONTRIBUTED),
        ({"device_id": "d9"}, AdmissionVerdict.NOT_SELECTED),
        ({"device_id": "d2", "round_number": 2}, AdmissionVerdict.UNKNOWN_ROUND),
        ({"device_id": "d2", "model_version": 2}, AdmissionVerdict.WRONG_MODEL_VERSION),
    ],
)
async def test_what_does_not_belong_is_not_admitted(
    bench: Bench, changes: dict[str, object], verdict: AdmissionVerdict
) -> None:
    await bench.collecting(await bench.lead())
    await bench.store.admit([submission()])
    (answer,) = await bench.store.admit([replace(submission(), **changes)])  # type: ignore[arg-type]  # named fields
    assert answer.verdict is verdict
    assert (await bench.store.snapshot(TASK)).accepted == 1
    assert [c.device_id for c in await bench.store.contributions(TASK, 1)] == ["d1"]


async def test_nothing_is_admitted_at_or_after_the_deadline(bench: Bench) -> None:
    await bench.collecting(await bench.lead())
    await bench.set_clock(1_099)
    (before,) = await bench.store.admit([submission("d1")])
    await bench.set_clock(1_100)
    (late,) = await bench.store.admit([submission("d2")])
    assert before.verdict is AdmissionVerdict.ACCEPTED
    assert late.verdict is AdmissionVerdict.CLOSED


async def test_nothing_is_admitted_beyond_the_goal(bench: Bench) -> None:
    await bench.collecting(await bench.lead())
    verdicts = [
        answer.verdict
        for answer in await bench.store.admit([submission(d) for d in ("d1", "d2", "d3")])
    ]
    assert verdicts == [
        AdmissionVerdict.ACCEPTED,
        AdmissionVerdict.ACCEPTED,
        AdmissionVerdict.CLOSED,
    ]


async def test_nothing_is_admitted_while_the_round_selects(bench: Bench) -> None:
    await bench.open_round(await bench.lead())
    (answer,) = await bench.store.admit([submission()])
    assert answer.verdict is AdmissionVerdict.UNKNOWN_ROUND


async def test_leaving_collecting_fixes_the_contributions(bench: Bench) -> None:
    lease = await bench.lead()
    round_ = await bench.collecting(lease)
    await bench.store.admit([submission("d1"), submission("d2")])
    after = step(round_, GoalReached(at_ms=200, accepted=2))
    await bench.store.commit(after, lease=lease)
    (late,) = await bench.store.admit([submission("d3")])
    assert late.verdict is AdmissionVerdict.CLOSED
    assert len(await bench.store.contributions(TASK, 1)) == 2


async def test_a_probe_judges_and_stores_nothing(bench: Bench) -> None:
    await bench.collecting(await bench.lead())
    probe = await bench.store.probe(submission())
    assert probe.verdict is AdmissionVerdict.ACCEPTED
    assert (await bench.store.snapshot(TASK)).accepted == 0
    assert await bench.store.contributions(TASK, 1) == ()


async def test_a_contribution_comes_back_as_it_was_submitted(bench: Bench) -> None:
    await bench.collecting(await bench.lead())
    blob = submission("d2", inline_payload=None, loss_after=0.25, loss_before=None)
    await bench.store.admit([submission("d1"), blob])
    one, two = await bench.store.contributions(TASK, 1)
    assert (one.device_id, one.num_samples, one.loss_before, one.inline) == ("d1", 5, 0.5, True)
    assert one.digest == bytes(range(16))
    assert (two.device_id, two.loss_after, two.inline) == ("d2", 0.25, False)
    assert await bench.store.inline_payloads(TASK, 1, ["d1"]) == [b"payload"]


async def test_rejections_count_devices_of_the_cohort_once(bench: Bench) -> None:
    await bench.collecting(await bench.lead())
    for device in ("d1", "d1", "d2", "stranger"):
        await bench.store.note_rejection(TASK, 1, device)
    await bench.store.note_rejection(TASK, 7, "d1")
    assert await bench.store.rejections(TASK, 1) == 2


async def publish(bench: Bench, lease: Lease) -> tuple[Round, ModelVersion]:
    round_ = await bench.collecting(lease)
    await bench.store.admit([submission("d1"), submission("d2")])
    candidate = CandidateModel(sha256="ab" * 32, size_bytes=9, excluded=0)
    for event in (
        GoalReached(at_ms=200, accepted=2),
        CandidateReady(at_ms=300, candidate=candidate),
    ):
        round_ = step(round_, event)
        assert await bench.store.commit(round_, lease=lease) is CommitResult.COMMITTED
    published = step(round_, CandidatePassed(at_ms=400))
    model = replace(MODEL, version=2, parent=1, round_number=1, sha256="ab" * 32)
    return published, model


async def test_publishing_is_one_step(bench: Bench) -> None:
    lease = await bench.lead()
    published, model = await publish(bench, lease)
    record = record_of(published, ("d1", "d2"))
    result = await bench.store.finish(published, record=record, model=model, lease=lease)
    assert result is CommitResult.COMMITTED
    snapshot = await bench.store.snapshot(TASK)
    assert snapshot.round == published
    assert (snapshot.current_version, snapshot.published_rounds) == (2, 1)
    assert await bench.store.models(TASK) == (MODEL, model)
    assert await bench.store.finished_rounds(TASK, limit=5) == (replace(record, contributors=()),)
    assert await bench.store.unaudited(TASK) == (record,)


async def test_publishing_twice_changes_nothing(bench: Bench) -> None:
    lease = await bench.lead()
    published, model = await publish(bench, lease)
    record = record_of(published, ("d1", "d2"))
    await bench.store.finish(published, record=record, model=model, lease=lease)
    again = await bench.store.finish(published, record=record, model=model, lease=lease)
    assert again is not CommitResult.COMMITTED
    assert (await bench.store.snapshot(TASK)).published_rounds == 1
    assert len(await bench.store.finished_rounds(TASK, limit=5)) == 1


async def test_a_model_is_not_published_over_a_rollback(bench: Bench) -> None:
    lease = await bench.lead()
    published, model = await publish(bench, lease)
    record = record_of(published, ("d1", "d2"))
    await bench.store.finish(published, record=record, model=model, lease=lease)
    second = replace(published, number=2, version=2, base_version=2)
    opened = replace(
        second, version=1, phase=Phase.SELECTING, candidate=None, cohort_size=0, deadline_ms=0
    )
    assert await bench.store.commit(opened, lease=lease) is CommitResult.COMMITTED
    await bench.store.rollback(TASK, 1)
    result = await bench.store.finish(
        second,
        record=replace(record, number=2, accepted=0, contributors=()),
        model=replace(model, version=3),
        lease=lease,
    )
    assert result is CommitResult.BASE_CHANGED
    snapshot = await bench.store.snapshot(TASK)
    assert snapshot.round == opened
    assert (snapshot.current_version, snapshot.latest_version) == (1, 2)


async def test_a_record_that_misses_a_contribution_is_stale(bench: Bench) -> None:
    lease = await bench.lead()
    published, model = await publish(bench, lease)
    result = await bench.store.finish(
        published, record=record_of(published, ("d1",)), model=model, lease=lease
    )
    assert result is CommitResult.STALE


async def test_receipts_outlive_the_round_and_payloads_do_not(bench: Bench) -> None:
    lease = await bench.lead()
    published, model = await publish(bench, lease)
    record = record_of(published, ("d1", "d2"))
    await bench.store.finish(published, record=record, model=model, lease=lease)
    (again,) = await bench.store.admit([submission("d1")])
    assert again.verdict is AdmissionVerdict.DUPLICATE
    (late,) = await bench.store.admit([submission("d3")])
    assert late.verdict is AdmissionVerdict.CLOSED
    prefix = f"fedagg:{{{TASK}}}:"
    assert await bench.client.command("EXISTS", f"{prefix}payloads:1") == 0
    ttl = await bench.client.command("TTL", f"{prefix}submissions:1")
    assert isinstance(ttl, int)
    assert 0 < ttl <= 60


async def test_a_finished_task_takes_no_offers(bench: Bench) -> None:
    await bench.store.create_task(TASK, model=MODEL, num_rounds=1)
    lease = await bench.lead()
    published, model = await publish(bench, lease)
    record = record_of(published, ("d1", "d2"))
    await bench.store.finish(published, record=record, model=model, lease=lease)
    assert await bench.check_in("d1", "next") is CheckInVerdict.TASK_FINISHED
    assert await bench.store.candidates(TASK) == ()


async def test_an_audited_round_leaves_the_outbox(bench: Bench) -> None:
    lease = await bench.lead()
    published, model = await publish(bench, lease)
    record = record_of(published, ("d1", "d2"))
    await bench.store.finish(published, record=record, model=model, lease=lease)
    await bench.store.mark_audited(TASK, 1)
    assert await bench.store.unaudited(TASK) == ()
    assert await bench.store.finished_rounds(TASK, limit=5) == (replace(record, contributors=()),)


async def test_rolling_back_makes_an_earlier_version_current(bench: Bench) -> None:
    lease = await bench.lead()
    published, model = await publish(bench, lease)
    record = record_of(published, ("d1", "d2"))
    await bench.store.finish(published, record=record, model=model, lease=lease)
    assert await bench.store.rollback(TASK, 1) == MODEL
    assert await bench.store.rollback(TASK, 1) == MODEL
    snapshot = await bench.store.snapshot(TASK)
    assert (snapshot.current_version, snapshot.latest_version) == (1, 2)


async def test_an_unknown_version_is_refused(bench: Bench) -> None:
    with pytest.raises(UnknownModelVersion, match="no model version 5"):
        await bench.store.model(TASK, 5)
    with pytest.raises(UnknownModelVersion, match="no model version 5"):
        await bench.store.rollback(TASK, 5)


async def test_the_first_name_of_the_installation_stays(bench: Bench) -> None:
    assert await bench.store.claim_installation("a") == "a"
    assert await bench.store.claim_installation("b") == "a"


async def test_more_payloads_than_fit_one_reply_come_in_order(bench: Bench) -> None:
    key = f"fedagg:{{{TASK}}}:payloads:1"
    devices = [f"d{i}" for i in range(150)]
    for device in devices:
        await bench.client.command("HSET", key, device, f"payload of {device}")
    found = await bench.store.inline_payloads(TASK, 1, devices)
    assert found == [f"payload of {device}".encode() for device in devices]
    with pytest.raises(BlobNotFound, match="1 of 2 payloads"):
        await bench.store.inline_payloads(TASK, 1, ["d1", "absent"])


async def test_the_first_request_binds_an_enrollment_token(bench: Bench) -> None:
    remember = bench.store.remember_enrollment
    first = await remember("t1", csr_sha256="aa", chain_pem=b"chain", ttl_s=60)
    second = await remember("t1", csr_sha256="bb", chain_pem=b"other", ttl_s=60)
    assert first == second == ("aa", b"chain")


async def test_scripts_survive_a_restart_of_the_server(bench: Bench) -> None:
    await bench.lead()
    await bench.client.command("SCRIPT", "FLUSH")
    assert (await bench.store.snapshot(TASK)).current_version == 1


async def test_a_store_that_is_not_there_is_unavailable_with_a_hint(tmp_path: Path) -> None:
    client = RedisClient(f"unix://{tmp_path}/nothing.sock")
    with pytest.raises(StoreUnavailable) as caught:
        await RedisRoundStore(client).ping()
    assert caught.value.retry_after_ms > 0
    await client.close()


async def test_the_servers_settings_are_read(bench: Bench) -> None:
    settings = await bench.client.settings()
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] in {"no", "everysec", "always"}
    assert settings["aof_enabled"] == "1"
