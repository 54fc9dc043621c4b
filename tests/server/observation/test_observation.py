"""What the outside is told: metrics, audit lines, traces."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from opentelemetry import trace
from prometheus_client import CollectorRegistry

from monitoring.audit_entry import MAX_STRING_CHARS
from monitoring.audit_logger import AuditLogger
from monitoring.logs import get_logger
from monitoring.metrics import Metrics
from privacy.budget import Budget, LedgerState
from privacy.charge import Charge
from server.errors import StoreUnavailable
from server.observation.audit_trail import AuditTrail, audit_entry
from server.observation.observation import Observation
from server.processes.thread_pool import Workers
from server.round.ports import FinishedRound
from server.round.round_privacy import RoundCost
from server.round.shared_round import SharedRound
from server.round.state import AbandonReason, Phase, Round
from tests.security.shared_round.sealed_round import make_round

TASK: Final = "digits"
FINISHED: Final = FinishedRound(
    task=TASK,
    number=4,
    decision="published",
    reason="",
    base_version=4,
    model_version=5,
    cohort_size=3,
    accepted=2,
    contributors=("d1", "d2"),
    rejected=1,
    excluded=0,
    started_at_ms=1_000,
    finished_at_ms=3_500,
    bytes_up=88,
    traceparent="",
    metrics={"update_norm": 0.5},
)
ROUND: Final = Round(
    task=TASK,
    number=4,
    version=1,
    phase=Phase.SELECTING,
    base_version=4,
    reporting_goal=2,
    min_contributions=2,
    collection_timeout_ms=1_000,
    opened_at_ms=0,
    phase_since_ms=0,
    seed=0,
)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def observation(registry: CollectorRegistry) -> Observation:
    return Observation(
        metrics=Metrics.declare(registry),
        log=get_logger("test"),
        tracer=trace.NoOpTracerProvider().get_tracer("test"),
    )


@pytest.fixture
def workers() -> Iterator[Workers]:
    found = Workers("files", threads=1)
    yield found
    found.close()


def test_one_phase_is_on(observation: Observation, registry: CollectorRegistry) -> None:
    before = None
    for phase in (Phase.SELECTING, Phase.COLLECTING, Phase.AGGREGATING):
        entered = replace(ROUND, phase=phase)
        observation.phase_entered(entered, before=before)
        before = entered
    values = {
        phase: registry.get_sample_value("fedagg_round_phase", {"task": TASK, "phase": phase.value})
        for phase in Phase
    }
    assert {phase for phase, value in values.items() if value} == {Phase.AGGREGATING}
    assert registry.get_sample_value("fedagg_round", {"task": TASK}) == 4


def test_an_abandoned_round_leaves_the_model_version_alone(
    observation: Observation, registry: CollectorRegistry
) -> None:
    observation.round_finished(FINISHED)
    abandoned = replace(
        FINISHED,
        number=5,
        decision="abandoned",
        reason=AbandonReason.TOO_FEW_CONTRIBUTIONS.value,
        model_version=None,
        metrics={},
    )
    observation.round_finished(abandoned)
    assert registry.get_sample_value("fedagg_model_version", {"task": TASK}) == 5
    assert registry.get_sample_value("fedagg_aggregate_l2_norm", {"task": TASK}) == 0.5
    for decision in ("published", "abandoned"):
        labels = {"task": TASK, "decision": decision}
        assert registry.get_sample_value("fedagg_rounds_finished_total", labels) == 1
    total = registry.get_sample_value("fedagg_round_duration_seconds_sum", {"task": TASK})
    assert total == 2 * 2.5


def test_without_tracing_a_round_has_no_trace(observation: Observation) -> None:
    assert observation.new_traceparent(TASK, 1) == ""
    with observation.span("aggregate", ROUND):
        pass


def test_a_failed_tick_is_told(observation: Observation, caplog: pytest.LogCaptureFixture) -> None:
    observation.tick_failed(TASK, StoreUnavailable("gone"))
    assert [record.message for record in caplog.records] == ["tick_failed"]


async def test_a_round_is_written_down_and_counted_once(
    tmp_path: Path, workers: Workers, registry: CollectorRegistry
) -> None:
    path = tmp_path / "audit.jsonl"
    trail = AuditTrail(AuditLogger(path), workers, Metrics.declare(registry))
    for _ in range(3):
        await trail.record(FINISHED)
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["round_id"] == 4
    assert registry.get_sample_value("fedagg_audit_entries_total", {"task": TASK}) == 1


def test_an_audit_entry_holds_contributors_and_no_more_of_a_reason_than_fits() -> None:
    entry = audit_entry(replace(FINISHED, reason="x" * 10_000))
    assert entry.device_ids == ("d1", "d2")
    assert (entry.accepted, entry.rejected, entry.model_version) == (2, 1, 5)
    assert entry.reason == "x" * MAX_STRING_CHARS
    assert entry.at_ms == 3_500


SHARED: Final = SharedRound(
    parameters=make_round().to_bytes().hex(),
    members=tuple((f"d{index}", "ab" * 32) for index in range(9)),
    set_sha256="5e" * 32,
    mode="degraded_unchecked",
    sums=((0, 1, 2, 3, 4, 5, 6, 7),),
    selection_sha256="5f" * 32,
    excluded=(("d8", "wrap"), ("d9", "SEAL_BROKEN")),
    blamed=9,
    holders=(1, 2, 4, 5),
    liars=(2,),
)


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


def test_liars_exclusions_and_degraded_rounds_are_counted(
    observation: Observation, registry: CollectorRegistry
) -> None:
    observation.round_finished(replace(FINISHED, shared=SHARED))
    for name, labels in (
        ("share_holder_lies_total", {"holder": "2"}),
        ("shared_members_excluded_total", {"reason": "wrap"}),
        ("shared_members_excluded_total", {"reason": "SEAL_BROKEN"}),
        ("shared_rounds_degraded_total", {"mode": "degraded_unchecked"}),
    ):
        assert registry.get_sample_value(f"fedagg_{name}", {"task": TASK, **labels}) == 1


def test_what_holders_do_is_counted(observation: Observation, registry: CollectorRegistry) -> None:
    observation.holder_reachable(TASK, 3, reachable=True)
    observation.holder_refused(TASK, 3, "SHARE_MISSING")
    observation.share_relayed(TASK, 3, "stored")
    observation.opened(TASK, 3, "coin")
    for name, labels in (
        ("share_holder_up", {}),
        ("share_holder_refusals_total", {"reason": "SHARE_MISSING"}),
        ("shares_relayed_total", {"outcome": "stored"}),
        ("shared_statements_total", {"kind": "coin"}),
    ):
        found = registry.get_sample_value(f"fedagg_{name}", {"task": TASK, "holder": "3", **labels})
        assert found == 1


COST: Final = RoundCost(
    charge=Charge(noise_multiplier=2.0).to_text(),
    is_charged=True,
    clipping_norm=0.25,
    counts={},
    epsilon=0.75,
    delta=1e-5,
)


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


@pytest.mark.parametrize("is_exhausted", [False, True])
def test_the_ledger_is_metered(
    observation: Observation, registry: CollectorRegistry, is_exhausted: bool
) -> None:
    ledger = LedgerState(
        committed={COST.charge: 3},
        reserved={4: COST.charge},
        clipping_norm=0.5,
        is_exhausted=is_exhausted,
    )
    observation.ledger_changed(TASK, ledger)
    observation.privacy_spent(TASK, epsilon=0.5, budget=Budget(epsilon=1.0, delta=1e-5))
    expected = {
        "rounds_committed": 3,
        "rounds_reserved": 1,
        "clipping_norm": 0.5,
        "budget_exhausted": is_exhausted,
        "epsilon_spent": 0.5,
        "epsilon_budget": 1.0,
    }
    for name, value in expected.items():
        assert registry.get_sample_value(f"fedagg_privacy_{name}", {"task": TASK}) == value


def test_a_clipping_norm_that_does_not_adapt_is_not_metered(
    observation: Observation, registry: CollectorRegistry
) -> None:
    observation.ledger_changed(TASK, LedgerState())
    assert registry.get_sample_value("fedagg_privacy_clipping_norm", {"task": TASK}) is None
