"""What the outside is told: metrics, audit lines, traces."""

from dataclasses import replace
from typing import Final

import pytest
from opentelemetry import trace
from prometheus_client import CollectorRegistry

from monitoring.logs import get_logger
from monitoring.metrics import Metrics
from privacy.budget import Budget, LedgerState
from server.errors import StoreUnavailable
from server.observation.observation import Observation
from server.round.state import AbandonReason, Phase, Round
from tests.server.observation.finished_rounds import COST, FINISHED, SHARED, TASK

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


def test_one_phase_is_on(observation: Observation, registry: CollectorRegistry) -> None:
    before = None
    for phase in (Phase.SELECTING, Phase.COLLECTING, Phase.AGGREGATING):
        entered = replace(ROUND, phase=phase)
        observation.phase_entered(entered, before=before)
        before = entered
    values = {
        phase: registry.get_sample_value(
            "federated_round_phase", {"task": TASK, "phase": phase.value}
        )
        for phase in Phase
    }
    assert {phase for phase, value in values.items() if value} == {Phase.AGGREGATING}
    assert registry.get_sample_value("federated_round", {"task": TASK}) == 4


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
    assert registry.get_sample_value("federated_model_version", {"task": TASK}) == 5
    assert registry.get_sample_value("federated_aggregate_l2_norm", {"task": TASK}) == 0.5
    for decision in ("published", "abandoned"):
        labels = {"task": TASK, "decision": decision}
        assert registry.get_sample_value("federated_rounds_finished_total", labels) == 1
    total = registry.get_sample_value("federated_round_duration_seconds_sum", {"task": TASK})
    assert total == 2 * 2.5


def test_without_tracing_a_round_has_no_trace(observation: Observation) -> None:
    assert observation.new_traceparent(TASK, 1) == ""
    with observation.span("aggregate", ROUND):
        pass


def test_a_failed_tick_is_told(observation: Observation, caplog: pytest.LogCaptureFixture) -> None:
    observation.tick_failed(TASK, StoreUnavailable("gone"))
    assert [record.message for record in caplog.records] == ["tick_failed"]


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
        assert registry.get_sample_value(f"federated_{name}", {"task": TASK, **labels}) == 1


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
        found = registry.get_sample_value(
            f"federated_{name}", {"task": TASK, "holder": "3", **labels}
        )
        assert found == 1


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
        assert registry.get_sample_value(f"federated_privacy_{name}", {"task": TASK}) == value


def test_a_clipping_norm_that_does_not_adapt_is_not_metered(
    observation: Observation, registry: CollectorRegistry
) -> None:
    observation.ledger_changed(TASK, LedgerState())
    assert registry.get_sample_value("federated_privacy_clipping_norm", {"task": TASK}) is None
