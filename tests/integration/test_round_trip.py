"""Whole rounds against a real coordinator: published, abandoned, retried, resumed, rolled back."""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from client import (
    ClientConfig,
    ClientEvent,
    ClientHooks,
    EventKind,
    MobileClient,
    Outcome,
    RetryPolicy,
)
from monitoring.audit_logger import KEY_FILE, load_or_create_key, verify
from protos.fedagg.v1 import federation_pb2 as pb
from server.config import ConfigError
from server.round.blob_names import model_blob
from tests.client.cutting_proxy import CuttingProxy
from tests.integration.service import (
    CALL_TIMEOUT_S,
    CLOCK,
    TASK,
    Service,
    eventually,
    header,
    refusal_of,
    serving,
)
from tests.integration.trainers import Adding
from updates.codec import encode_dense
from updates.vectors import decode_model

COLLECTION_MS: Final = 600_000
CHUNK_BYTES: Final = 500_000


def config(address: str, device: str) -> ClientConfig:
    return ClientConfig(
        servers=(address,),
        task=TASK,
        device_id=device,
        insecure=True,
        retry=RetryPolicy(initial_s=0.01, max_s=0.05),
    )


async def run_device(service: Service, device: str, trainer: Adding) -> int:
    async with MobileClient(config(service.address, device), trainer) as client:
        return await client.run()


async def contribute(
    service: Service, device: str, vector: NDArray[np.float32], *, assignment: pb.Assignment
) -> pb.SubmissionReceipt:
    payload = encode_dense(vector)
    head = header(
        device,
        payload,
        round_number=assignment.round,
        model_version=assignment.model_version,
    )
    return await service.inline(head, payload)


async def publish_round(service: Service, check_in_id: str = "c1") -> dict[str, object]:
    """Take the task through one more round of `d1` and `d2`."""
    assignments = await service.open_round("d1", "d2", check_in_id=check_in_id)
    ones = np.ones(service.dim, np.float32)
    for device, assignment in zip(("d1", "d2"), assignments, strict=True):
        await contribute(service, device, ones, assignment=assignment)
    record = await service.finished(assignments[0].round)
    assert record["decision"] == "published", record
    return record


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def chunks_of(payload: bytes, start: int = 0) -> list[bytes]:
    return [payload[i : i + CHUNK_BYTES] for i in range(start, len(payload), CHUNK_BYTES)]


async def weights_of(service: Service, version: int = 0) -> NDArray[np.float32]:
    tensors, _ = decode_model(await service.fetch(version))
    assert list(tensors) == ["weight", "bias"]
    return np.concatenate([tensor.ravel() for tensor in tensors.values()])


DEVICES: Final = {"d1": Adding(1.0, 10), "d2": Adding(2.0, 20), "d3": Adding(4.0, 30)}
MEAN: Final = (1 * 10 + 2 * 20 + 4 * 30) / 60


async def test_devices_take_a_task_to_its_end(tmp_path: Path, redis_url: str) -> None:
    task = {"reporting-goal": 3, "num-rounds": 2}
    async with serving(tmp_path, redis_url, task=task) as service:
        counts = await asyncio.gather(
            *(run_device(service, device, trainer) for device, trainer in DEVICES.items())
        )
        assert counts == [2, 2, 2]
        for version, expected in ((1, 0.0), (2, MEAN), (3, 2 * MEAN)):
            # Exact but for the rounding to float32, of the weights and of the devices' deltas.
            np.testing.assert_allclose(await weights_of(service, version), expected, rtol=2.0**-22)
        await assert_versions_are_linked(service)
        await assert_audited(service)
        await assert_counted(service)


async def assert_versions_are_linked(service: Service) -> None:
    models = await service.get(f"/api/v1/tasks/{TASK}/models")
    chain = [(model["version"], model["parent"], model["round_number"]) for model in models]
    assert chain == [(3, 2, 2), (2, 1, 1), (1, None, None)]
    for model in models:
        blob = service.data_dir / "blobs" / model_blob(TASK, model["round_number"], model["sha256"])
        data = await service.fetch(model["version"])
        assert blob.read_bytes() == data
        assert hashlib.sha256(data).hexdigest() == model["sha256"]
        assert (model["size_bytes"], model["dim"]) == (len(data), service.dim)
    assert models[0]["metrics"]["num_samples"] == 60


async def assert_audited(service: Service) -> None:
    lines = [json.loads(line) for line in await service.audited(2)]
    assert [(line["round_id"], line["decision"], line["model_version"]) for line in lines] == [
        (1, "published", 2),
        (2, "published", 3),
    ]
    for line in lines:
        assert line["task"] == TASK
        assert line["privacy_spent"] is None
        assert len(set(line["device_ids"])) == line["accepted"] == 3
        assert not set(line["device_ids"]) & set(DEVICES)
    # The same devices have the same pseudonyms, so that an auditor can follow them.
    assert lines[0]["device_ids"] == lines[1]["device_ids"]
    key = load_or_create_key(service.audit_path.with_name(KEY_FILE))
    report = verify(service.audit_path, key=key)
    assert report.is_intact, report.problems
    assert report.entries == 2


async def assert_counted(service: Service) -> None:
    """The metrics tell what happened, as this test knows it."""
    payload_bytes = 16 + 4 * service.dim
    for name, labels, value in (
        ("updates_accepted_total", {}, 6),
        ("update_payload_bytes_total", {}, 6 * payload_bytes),
        ("rounds_finished_total", {"decision": "published"}, 2),
        ("rounds_finished_total", {"decision": "abandoned"}, 0),
        ("audit_entries_total", {}, 2),
        ("model_version", {}, 3),
        ("round", {}, 2),
        ("leader", {}, 1),
        ("check_ins_total", {"outcome": "assigned"}, 6),
        ("check_ins_total", {"outcome": "task_finished"}, 3),
        ("aggregate_l2_norm", {}, MEAN * np.sqrt(service.dim)),
    ):
        found = await service.metric(f"federated_{name}", task=TASK, **labels)
        assert found == pytest.approx(value, rel=1e-6), name


async def test_the_round_is_idle_until_enough_devices_came(service: Service) -> None:
    first = await service.check_in("d1", max_wait_ms=0)
    assert first.retry_later.reason == pb.RetryLater.WAITING
    assert 0 < first.retry_later.retry_after_ms <= 1_000

    async def opened() -> dict[str, object] | None:
        status: dict[str, object] = await service.get(f"/api/v1/tasks/{TASK}")
        return status if status["phase"] else None

    status = await eventually(opened)
    assert (status["phase"], status["waiting"]) == ("selecting", 1)


async def test_devices_not_chosen_are_told_when_to_come_back(
    tmp_path: Path, redis_url: str
) -> None:
    task = {"over-selection": 1.5}  # two updates wanted, three devices selected
    async with serving(tmp_path, redis_url, task=task, clock=CLOCK) as service:
        devices = [f"d{i}" for i in range(8)]
        for device in devices:
            await service.check_in(device, max_wait_ms=0)

        async def selected() -> list[str] | None:
            answers = [await service.check_in(device, max_wait_ms=0) for device in devices]
            chosen = [
                device
                for device, answer in zip(devices, answers, strict=True)
                if answer.HasField("assignment")
            ]
            return chosen or None

        await eventually(selected)
        # The first answers of that turn may have been given before the selection.
        chosen = await selected() or []
        assert len(chosen) == 3
        hints = []
        for device in set(devices) - set(chosen):
            later = (await service.check_in(device, max_wait_ms=0)).retry_later
            assert later.reason == pb.RetryLater.NOT_SELECTED
            hints.append(later.retry_after_ms)
        # Within the life of an offer, which is 30 s, and not all at once.
        assert all(0 < hint <= 30_000 for hint in hints)
        assert len(set(hints)) == len(hints)


async def test_an_update_beyond_the_goal_is_late(tmp_path: Path, redis_url: str) -> None:
    task = {"over-selection": 1.5}
    async with serving(tmp_path, redis_url, task=task, clock=CLOCK) as service:
        assignments = await service.open_round("d1", "d2", "d3")
        ones = np.ones(service.dim, np.float32)
        for device in ("d1", "d2"):
            await contribute(service, device, ones, assignment=assignments[0])
        late = await refusal_of(contribute(service, "d3", ones, assignment=assignments[0]))
        assert (late.code, late.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ROUND_CLOSED")
        record = await service.finished(1)
        assert (record["accepted"], record["cohort_size"]) == (2, 3)
        late = await refusal_of(contribute(service, "d3", ones, assignment=assignments[0]))
        assert late.reason == "ROUND_CLOSED"


async def test_progress_tells_whether_the_round_still_waits(collecting: Service) -> None:
    report = pb.ReportProgressRequest(
        task=TASK, round=1, device_id="d1", stage=pb.ReportProgressRequest.TRAINING, fraction=0.5
    )

    async def told() -> tuple[bool, int]:
        answer = await collecting.stub.ReportProgress(report, timeout=CALL_TIMEOUT_S)
        return answer.round_open, answer.ttl_ms

    assert await told() == (True, COLLECTION_MS)
    collecting.advance(1_000)
    assert await told() == (True, COLLECTION_MS - 1_000)
    collecting.advance(COLLECTION_MS)
    assert await told() == (False, 0)


async def test_too_few_updates_end_the_round_and_the_task_goes_on(collecting: Service) -> None:
    ones = np.ones(collecting.dim, np.float32)
    (assignment,) = await collecting.open_round("d1")  # again the same selection
    await contribute(collecting, "d1", ones, assignment=assignment)
    collecting.advance(COLLECTION_MS)
    record = await collecting.finished(1)
    assert record["decision"] == "abandoned"
    assert record["reason"].startswith("too_few_contributions")
    assert (record["accepted"], record["model_version"]) == (1, None)
    published = await publish_round(collecting, "c2")
    assert (published["number"], published["base_version"]) == (2, 1)
    assert published["model_version"] == 2
    decisions = [json.loads(line)["decision"] for line in await collecting.audited(2)]
    assert decisions == ["abandoned", "published"]


async def test_a_quorum_is_enough_at_the_deadline(tmp_path: Path, redis_url: str) -> None:
    task = {"reporting-goal": 3, "min-contributions": 2}
    async with serving(tmp_path, redis_url, task=task, clock=CLOCK) as service:
        assignments = await service.open_round("d1", "d2", "d3")
        for device, value in (("d1", 1.0), ("d2", 3.0)):
            vector = np.full(service.dim, value, np.float32)
            await contribute(service, device, vector, assignment=assignments[0])
        service.advance(COLLECTION_MS)
        record = await service.finished(1)
        assert (record["decision"], record["accepted"]) == ("published", 2)
        np.testing.assert_array_equal(await weights_of(service), np.float32(2.0))


async def test_a_rule_that_cannot_work_is_refused_before_the_first_round(
    tmp_path: Path, redis_url: str
) -> None:
    # Krum needs 2 f + 3 = 5 updates to withstand one attacker (Blanchard et al. 2017).
    task = {"reporting-goal": 4, "aggregation": {"rule": "krum", "num-malicious-nodes": 1}}
    with pytest.raises(ConfigError, match="krum needs at least 5 updates against 1 attackers"):
        async with serving(tmp_path, redis_url, task=task, clock=CLOCK):
            pass


async def test_a_candidate_that_moves_too_far_is_not_published(
    tmp_path: Path, redis_url: str
) -> None:
    task = {"validation": {"max-update-norm": 1.0}}
    async with serving(tmp_path, redis_url, task=task, clock=CLOCK) as service:
        for number, value, decision in ((1, 9.0, "abandoned"), (2, 0.1, "published")):
            assignments = await service.open_round("d1", "d2", check_in_id=f"c{number}")
            for device in ("d1", "d2"):
                vector = np.full(service.dim, value, np.float32)
                await contribute(service, device, vector, assignment=assignments[0])
            record = await service.finished(number)
            assert record["decision"] == decision
        assert (await service.finished(1))["reason"].startswith("validation_failed: update norm")
        assert len(await service.get(f"/api/v1/tasks/{TASK}/models")) == 2


async def test_a_rollback_ends_the_open_round(service: Service) -> None:
    await publish_round(service, "c1")
    first, second = await service.open_round("d1", "d2", check_in_id="c2")
    assert (first.round, first.model_version) == (2, 2)
    ones = np.ones(service.dim, np.float32)
    await contribute(service, "d1", ones, assignment=first)
    rolled = await service.post(f"/api/v1/tasks/{TASK}/models/1/rollback", {})
    assert rolled["version"] == 1
    record = await service.finished(2)
    assert record["decision"] == "abandoned"
    assert record["reason"].startswith("base_version_changed")
    refusal = await refusal_of(contribute(service, "d2", ones, assignment=second))
    assert refusal.reason == "ROUND_CLOSED"
    published = await publish_round(service, "c3")
    assert (published["number"], published["base_version"], published["model_version"]) == (
        3,
        1,
        3,
    )
    newest = await service.get(f"/api/v1/tasks/{TASK}/models/3")
    assert newest["parent"] == 1
    assert await service.metric("federated_rollbacks_total", task=TASK) == 1


async def test_a_retried_check_in_gets_its_selection_again(tmp_path: Path, redis_url: str) -> None:
    async with serving(tmp_path, redis_url, task={"num-rounds": 1}, clock=CLOCK) as service:
        first, _ = await service.open_round("d1", "d2")
        service.advance(1_000)
        (again,) = await service.open_round("d1")
        assert again.ttl_ms == first.ttl_ms - 1_000
        again.ttl_ms = first.ttl_ms
        assert again == first
        ones = np.ones(service.dim, np.float32)
        for device in ("d1", "d2"):
            await contribute(service, device, ones, assignment=first)
        await service.finished(1)
        (after,) = await service.open_round("d1")
        assert after.ttl_ms == 0
        after.ttl_ms = first.ttl_ms
        assert after == first
        # A new offer is another question.
        fresh = await service.check_in("d1", "c2")
        assert fresh.retry_later.reason == pb.RetryLater.TASK_FINISHED


async def test_a_retried_submission_gets_the_same_receipt_on_every_path(
    collecting: Service,
) -> None:
    payload = collecting.update()
    head = header("d1", payload)

    async def receipts() -> list[bytes]:
        found = [
            await collecting.inline(head, payload),
            await collecting.stream(head, payload[:10], payload[10:]),
            (await collecting.batch((head, payload)))[0].receipt,
            (await collecting.upload_status(head)).receipt,
        ]
        return [receipt.SerializeToString() for receipt in found]

    first = await receipts()
    assert len(set(first)) == 1
    collecting.advance(5)  # the time of a retry must not show in the receipt
    assert await receipts() == first
    other = collecting.update(2.0)
    await collecting.stream(header("d2", other), other)
    assert (await collecting.finished(1))["accepted"] == 2
    assert await receipts() == first
    await publish_round(collecting, "c2")
    assert await receipts() == first
    assert await collecting.metric("federated_updates_accepted_total", task=TASK) == 4


async def test_simultaneous_duplicates_count_once(collecting: Service) -> None:
    payload = collecting.update()
    head = header("d1", payload)
    receipts = await asyncio.gather(
        *(collecting.inline(head, payload) for _ in range(10)),
        *(collecting.stream(head, payload) for _ in range(2)),
    )
    assert len({receipt.SerializeToString() for receipt in receipts}) == 1
    status = await collecting.get(f"/api/v1/tasks/{TASK}")
    assert status["accepted"] == 1


async def test_a_broken_upload_is_resumed_where_it_broke(tmp_path: Path, redis_url: str) -> None:
    async with serving(tmp_path, redis_url, dim=1_500_000, clock=CLOCK) as service:
        await service.open_round("d1", "d2")
        payload = service.update(0.5)
        head = header("d1", payload)
        assert (await service.upload_status(head)).stored_bytes == 0
        call = service.stub.SubmitUpdate(timeout=CALL_TIMEOUT_S)
        await call.write(pb.SubmitUpdateRequest(header=head))
        # More than the server holds in memory, so that some of it lies in a file.
        for chunk in chunks_of(payload)[:10]:
            await call.write(pb.SubmitUpdateRequest(data=chunk))

        async def stored() -> int | None:
            return (await service.upload_status(head)).stored_bytes or None

        await eventually(stored)
        call.cancel()
        offset = await eventually(stored)
        assert 0 < offset <= 10 * CHUNK_BYTES
        rest = chunks_of(payload, offset)
        receipt = await service.stream(header("d1", payload, offset=offset), *rest)
        assert receipt.payload_digest == head.payload_digest
        assert (await service.upload_status(head)).receipt == receipt
        # What lies in the store is the payload, once; and nothing once the round is over.
        updates = service.data_dir / "blobs" / "updates"
        assert [path.read_bytes() == payload for path in files_in(updates)] == [True]
        await service.stream(header("d2", payload), *chunks_of(payload))
        assert (await service.finished(1))["bytes_up"] == 2 * len(payload)
        np.testing.assert_array_equal(await weights_of(service), np.float32(0.5))

        async def purged() -> bool | None:
            return not files_in(updates) or None

        await eventually(purged)


async def test_a_broken_download_is_resumed_where_it_broke(tmp_path: Path, redis_url: str) -> None:
    async with serving(tmp_path, redis_url, dim=700_000) as service:
        request = pb.FetchModelRequest(task=TASK, model_version=1)
        call = service.stub.FetchModel(request, timeout=CALL_TIMEOUT_S)
        first = await anext(aiter(call))
        call.cancel()
        assert (first.offset, first.total_bytes) == (0, len(service.model))
        assert 0 < len(first.data) < len(service.model)
        for offset in (len(first.data), len(first.data) + 1, len(service.model) - 1):
            assert await service.fetch(1, offset=offset) == service.model[offset:]


@pytest.mark.slow
async def test_a_device_gets_through_a_network_that_breaks(tmp_path: Path, redis_url: str) -> None:
    task = {"reporting-goal": 1, "num-rounds": 1}
    async with serving(tmp_path, redis_url, task=task, dim=700_000) as service:
        size = 4 * 700_000
        retries: list[ClientEvent] = []

        def watch(event: ClientEvent) -> None:
            if event.kind is EventKind.RETRYING:
                retries.append(event)

        # The first break falls into the download, the second one into the upload.
        hooks = ClientHooks(on_event=watch)
        async with (
            CuttingProxy(service.address, cut_after=[2_000_000, size + 500_000]) as proxy,
            MobileClient(config(proxy.address, "d1"), Adding(0.5), hooks=hooks) as client,
        ):
            outcome = await client.participate_once()
        assert outcome.outcome is Outcome.ACCEPTED, outcome
        assert proxy.num_cuts >= 2  # each direction may notice the same cut
        assert retries
        assert (await service.finished(1))["accepted"] == 1
        np.testing.assert_array_equal(await weights_of(service), np.float32(0.5))


async def test_either_coordinator_answers_any_call(tmp_path: Path, redis_url: str) -> None:
    async with AsyncExitStack() as running:
        one = await running.enter_async_context(serving(tmp_path, redis_url))
        async with serving(tmp_path, redis_url) as two:
            assignments = await asyncio.gather(one.open_round("d1"), two.open_round("d2"))
            assert assignments[0][0].round == assignments[1][0].round
            assert await one.fetch(1) == await two.fetch(1)
            payload = one.update(0.25)
            head = header("d1", payload)
            await refusal_of(one.stream(head, payload[:20]))
            assert (await two.upload_status(head)).stored_bytes == 20
            resumed = header("d1", payload, offset=20)
            receipt = await two.stream(resumed, payload[20:])
            assert await one.inline(head, payload) == receipt
            conflict = await refusal_of(one.inline(header("d1", two.update(9)), two.update(9)))
            assert conflict.reason == "SUBMISSION_CONFLICT"
            await two.inline(header("d2", payload), payload)
            assert await one.finished(1) == await two.finished(1)
            leaders = [await each.metric("federated_leader", task=TASK) for each in (one, two)]
            assert sorted(leaders) == [0, 1]
            # The one that leads goes; the other one carries on.
            await running.aclose()
            published = await publish_round(two, "c2")
            assert (published["number"], published["model_version"]) == (2, 3)
            assert len(await two.audited(2)) == 2


@pytest.mark.parametrize("rule", ["mean", "median", "trimmed-mean", "krum", "multi-krum"])
async def test_the_order_of_arrival_does_not_show(
    tmp_path: Path, redis_url: str, rule: str
) -> None:
    devices = [f"d{i}" for i in range(7)]
    rng = np.random.default_rng(5)
    # Magnitudes far apart: adding them up in another order gives other bits.
    vectors = {
        device: (rng.standard_normal(50) * 10.0 ** rng.integers(-6, 6)).astype(np.float32)
        for device in devices
    }
    task = {
        "reporting-goal": len(devices),
        "aggregation": {"rule": rule, "num-malicious-nodes": 1},
    }

    async def published(service: Service, order: Sequence[str], number: int) -> str:
        assignments = await service.open_round(*order, check_in_id=f"c{number}")
        for device in order:
            await contribute(service, device, vectors[device], assignment=assignments[0])
        record = await service.finished(assignments[0].round)
        assert (record["decision"], record["base_version"]) == ("published", 1)
        model = await service.get(f"/api/v1/tasks/{TASK}/models/{record['model_version']}")
        sha256: str = model["sha256"]
        return sha256

    async with serving(tmp_path, redis_url, task=task, dim=50) as service:
        hashes = []
        for number in (1, 2):
            order = [devices[i] for i in np.random.default_rng(number).permutation(7)]
            hashes.append(await published(service, order, number))
            await service.post(f"/api/v1/tasks/{TASK}/models/1/rollback", {})
        assert hashes[0] == hashes[1]
        assert hashes[0] != hashlib.sha256(service.model).hexdigest()


async def test_refusals_are_counted_by_reason(collecting: Service) -> None:
    payload = collecting.update()
    stranger = header("d9", payload)
    sent = {"DEVICE_NOT_SELECTED": stranger, "UNKNOWN_ROUND": header("d1", payload, round_number=9)}
    for times, head in zip((2, 3), sent.values(), strict=True):
        for _ in range(times):
            await refusal_of(collecting.inline(head, payload))
    await refusal_of(collecting.inline(header("d1", payload, task="secret"), payload))
    for reason, times in (("DEVICE_NOT_SELECTED", 2), ("UNKNOWN_ROUND", 3), ("UNKNOWN_TASK", 0)):
        found = await collecting.metric("federated_updates_refused_total", task=TASK, reason=reason)
        assert found == times
    # A name that a stranger chose is no label.
    assert (
        await collecting.metric(
            "federated_updates_refused_total", task="secret", reason="UNKNOWN_TASK"
        )
        == 0
    )
