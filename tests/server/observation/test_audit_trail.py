"""What the audit log says of a round."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from monitoring.audit_entry import MAX_STRING_CHARS
from monitoring.audit_logger import AuditLogger
from monitoring.metrics import Metrics
from server.observation.audit_trail import AuditTrail, audit_entry
from server.processes.thread_pool import Workers
from server.round.shared_round import SharedRound
from tests.server.observation.finished_rounds import COST, FINISHED, SHARED, TASK


@pytest.fixture
def workers() -> Iterator[Workers]:
    found = Workers("files", threads=1)
    yield found
    found.close()


async def test_a_round_is_written_down_and_counted_once(tmp_path: Path, workers: Workers) -> None:
    registry = CollectorRegistry()
    path = tmp_path / "audit.jsonl"
    trail = AuditTrail(AuditLogger(path), workers, Metrics.declare(registry))
    for _ in range(3):
        await trail.record(FINISHED)
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["round_id"] == 4
    assert registry.get_sample_value("federated_audit_entries_total", {"task": TASK}) == 1


def test_an_audit_entry_holds_contributors_and_no_more_of_a_reason_than_fits() -> None:
    entry = audit_entry(replace(FINISHED, reason="x" * 10_000))
    assert entry.device_ids == ("d1", "d2")
    assert (entry.accepted, entry.rejected, entry.model_version) == (2, 1, 5)
    assert entry.reason == "x" * MAX_STRING_CHARS
    assert entry.at_ms == 3_500


def test_a_shared_rounds_audit_entry_says_what_was_opened_to_whom_and_no_device() -> None:
    details = audit_entry(replace(FINISHED, shared=SHARED)).details
    assert (details["mode"], details["holders"], details["threshold"]) == ("shared", 5, 3)
    assert (details["selection_mode"], details["degraded"]) == ("degraded_unchecked", True)
    assert details["set_sha256"] == "5e" * 32
    assert details["selection_sha256"] == "5f" * 32
    assert details["excluded_by_reason"] == ("SEAL_BROKEN: 1", "wrap: 1")
    assert details["opened_at_most"] == (
        "everybody: 1 sums",
        "everybody: 100 sum elements",
        "holders and coordinator: 9 consistency values",
        "holders and coordinator: 40 wrap scalars",
        "holders and coordinator: 360 blame scalars",
    )
    assert (details["holders_heard"], details["holders_lied"]) == (("1", "2", "4", "5"), ("2",))
    assert "d8" not in repr(details)


def test_a_shared_round_that_opened_nothing_says_so() -> None:
    record = replace(FINISHED, shared=SharedRound(parameters=SHARED.parameters))
    assert audit_entry(record).details["opened_at_most"] == ()


def test_a_plain_rounds_audit_entry_tells_its_mode() -> None:
    assert audit_entry(FINISHED).details["mode"] == "plain"


def test_a_private_rounds_audit_entry_tells_its_charge_and_what_is_spent() -> None:
    entry = audit_entry(replace(FINISHED, privacy=COST))
    assert entry.privacy_spent == {"epsilon": 0.75, "delta": 1e-5}
    assert entry.details["privacy_charge"] == COST.charge
    assert entry.details["privacy_charged"] is True
    assert entry.details["clipping_norm"] == 0.25


def test_what_has_no_bound_is_told_as_none() -> None:
    unknown = replace(COST, epsilon=None)
    for record in (FINISHED, replace(FINISHED, privacy=unknown)):
        assert audit_entry(record).privacy_spent is None


def test_a_shared_private_rounds_details_fit_an_entry() -> None:
    details = audit_entry(replace(FINISHED, shared=SHARED, privacy=COST)).details
    assert details["mode"] == "shared"
    assert details["privacy_charged"] is True
