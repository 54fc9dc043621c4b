"""A private task: calibrated noise, bounded sums, and what the budget still allows."""

import json
import subprocess
import sys
from typing import Any, Final

import pytest

from aggregators.errors import AggregationError
from privacy.budget import LedgerState
from privacy.charge import Charge, Sampling
from privacy.errors import PrivacyError
from privacy.renyi_accountant import epsilon_of
from server.config import TaskConfig
from server.privacy.accountant_loader import load_private_task
from server.privacy.private_task import PrivateTask, private_task
from server.processes.thread_pool import Workers

DIM: Final = 1000


@pytest.fixture(scope="module")
def workers() -> Any:
    pool = Workers("test", threads=1)
    yield pool
    pool.close()


def configured(privacy: dict[str, Any] | None = None, **task: Any) -> TaskConfig:
    return TaskConfig.model_validate(
        {
            "name": "t",
            "initial-model": "m",
            "reporting-goal": 10,
            "plan": {"clipping-norm": 0.5},
            "privacy": {"noise": "central", "noise-multiplier": 5.0} | (privacy or {}),
        }
        | task
    )


def made(workers: Workers, privacy: dict[str, Any] | None = None, **task: Any) -> PrivateTask:
    return private_task(configured(privacy, **task), dim=DIM, workers=workers)


POISSON: Final = {"sampling": "poisson", "sampling-probability": 0.01, "population": 10_000}


def test_the_least_noise_with_which_all_rounds_fit_is_found(workers: Workers) -> None:
    settings = POISSON | {"noise-multiplier": 0.0, "accountant": "rdp"}
    task = made(workers, settings, **{"num-rounds": 1000, "reporting-goal": 100})
    z = task.charge.noise_multiplier
    assert task.charge.sampling is Sampling.POISSON
    # The specification's table: 1.514 by Renyi divergences.
    assert z == pytest.approx(1.514, abs=0.01)
    assert epsilon_of({task.charge: 1000}, 1e-5, "rdp") <= 1.0
    assert task.expected_updates == pytest.approx(100.0)


def test_without_sampling_participations_count(workers: Workers) -> None:
    settings = {"noise-multiplier": 0.0}
    task = made(workers, settings, **{"num-rounds": 1000, "max-participations": 2})
    # The specification's table, for two participations.
    assert task.charge.noise_multiplier == pytest.approx(5.276, abs=0.01)
    assert task.expected_updates == 10


def test_a_fixed_size_cohort_is_what_is_selected(workers: Workers) -> None:
    settings = {"sampling": "fixed-size", "population": 100, "noise-multiplier": 20.0}
    task = made(workers, settings, **{"over-selection": 1.3, "fairness": 0})
    assert (task.charge.population, task.charge.cohort) == (100, 13)


@pytest.mark.parametrize(
    ("rule", "sensitivity", "expected"),
    [
        ({}, 1.0, 10.0),
        ({"rule": "multi-krum", "num-malicious-nodes": 1}, 3.0, 9.0),
        ({"rule": "multi-krum", "num-malicious-nodes": 2, "num-nodes-to-select": 2}, 4.0, 2.0),
    ],
)
def test_a_rule_decides_the_sensitivity_and_the_divisor(
    rule: dict[str, Any], sensitivity: float, expected: float, workers: Workers
) -> None:
    task = made(workers, aggregation=rule)
    assert (task.sensitivity, task.expected_updates) == (sensitivity, expected)


@pytest.mark.parametrize("rule", ["bulyan", "median", "nnm+multi-krum"])
def test_a_rule_that_noise_cannot_be_added_to_is_refused(rule: str, workers: Workers) -> None:
    with pytest.raises((PrivacyError, AggregationError), match="multi-krum"):
        made(workers, aggregation={"rule": rule, "num-malicious-nodes": 1})


def test_distance_outliers_are_refused_where_holders_add_the_noise(workers: Workers) -> None:
    with pytest.raises(PrivacyError, match=r"distance-outliers.*choose mean or multi-krum"):
        made(
            workers,
            {"noise": "holders"},
            mode="shared",
            sharing={"committee": "c", "checks": "distances"},
            aggregation={"rule": "distance-outliers"},
        )


@pytest.mark.parametrize("rule", ["krum", "multi-krum", "bulyan"])
def test_rules_by_distance_are_refused_under_the_noise_of_devices(
    rule: str, workers: Workers
) -> None:
    """With what to choose instead; here the noise is only known once it is calibrated."""
    device = {"noise": "device", "noise-multiplier": 0.0}
    task = {"aggregation": {"rule": rule}, "max-participations": 1, "num-rounds": 1}
    with pytest.raises(PrivacyError, match=r"measured limit.*'central'.*rule = 'mean'"):
        made(workers, device, **task)


def test_the_mean_stands_the_noise_of_devices(workers: Workers) -> None:
    task = made(workers, {"noise": "device"})
    assert (task.sensitivity, task.expected_updates) == (1.0, 10.0)


def test_a_count_that_would_cost_more_than_a_round_is_refused(workers: Workers) -> None:
    """Else it would be found out in the first round, which is charged, and in each one after."""
    adaptive = {"adaptive-clipping": True, "noise-multiplier": 5.0}
    with pytest.raises(PrivacyError, match="count alone would use up"):
        made(workers, adaptive)
    with pytest.raises(PrivacyError, match="count alone would use up"):
        made(workers, adaptive | {"count-noise": 2.5})
    assert made(workers, adaptive | {"count-noise": 2.6}).adapts


def test_settings_without_room_for_one_round_are_refused(workers: Workers) -> None:
    with pytest.raises(PrivacyError, match=r"noise-multiplier=0\.1 is too little for even one"):
        made(workers, {"noise-multiplier": 0.1})


async def test_a_round_that_would_exceed_the_budget_is_refused(workers: Workers) -> None:
    task = made(workers, {"epsilon": 1.0, "noise-multiplier": 6.0})
    charge = task.charge.to_text()
    counts = [n for n in range(1, 20) if epsilon_of({task.charge: n}, 1e-5) <= 1.0]
    fit = len(counts)
    assert fit >= 2
    ledger = LedgerState(committed={charge: fit - 1}, max_participations=fit - 1)
    privacy = await task.plan(ledger)
    assert await task.refusal(ledger, privacy) is None
    assert await task.remaining(ledger, privacy, limit=100) == 1
    full = LedgerState(committed={charge: fit}, max_participations=fit)
    refusal = await task.refusal(full, privacy)
    assert refusal is not None
    assert "epsilon=1 at delta=1e-05" in refusal
    assert await task.remaining(full, privacy, limit=100) == 0


async def test_epsilon_is_the_accountants(workers: Workers) -> None:
    task = made(workers)
    assert await task.epsilon({}, "pld") == 0.0
    counts = {task.charge.to_text(): 3, Charge(noise_multiplier=9.0).to_text(): 0}
    for accountant in ("pld", "rdp"):
        told = await task.epsilon(counts, accountant)
        assert told == epsilon_of({task.charge: 3}, 1e-5, accountant)


async def test_only_an_adaptive_task_follows_the_clipping_norm(workers: Workers) -> None:
    moved = LedgerState(clipping_norm=0.125)
    assert (await made(workers).plan(moved)).clipping_norm == 0.5
    adaptive = made(workers, {"adaptive-clipping": True, "count-noise": 3.0})
    assert (await adaptive.plan(moved)).clipping_norm == 0.125
    assert (await adaptive.plan(LedgerState())).clipping_norm == 0.5
    assert adaptive.first_round == await adaptive.plan(LedgerState())


def test_what_cannot_be_private_is_refused(workers: Workers) -> None:
    config = configured({"noise-multiplier": 0.1})
    with pytest.raises(PrivacyError, match="noise-multiplier"):
        load_private_task(config, dim=DIM, workers=workers)


def test_a_coordinator_without_private_tasks_loads_no_accountant() -> None:
    code = "import sys, json, server.app; print(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    loaded = json.loads(answer.stdout)
    assert "server.privacy.accountant_loader" in loaded
    assert "dp_accounting" not in loaded
