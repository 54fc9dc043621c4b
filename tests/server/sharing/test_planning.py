"""From a task's settings to the parameters of its rounds."""

from pathlib import Path
from typing import Any

import pytest

from security.errors import SharingError
from security.shared_round.bundle import SealedUpdate
from security.shared_round.parameters import Checks, Degraded, ShareFormat
from server.config import TaskConfig
from server.sharing.planning import BaseModel, SharedTask, staleness_weights
from server.tasks import task_info
from tests.security.shared_round.sealed_round import COMMITTEE, PHONE
from tests.server.sharing.updates import update_of

DIM = 300
BASE = BaseModel(version=4, sha256="ab" * 32, dim=DIM)


def shared_task(sharing: dict[str, Any] | None = None, **changes: Any) -> SharedTask:
    config = TaskConfig.model_validate(
        {
            "name": "digits",
            "initial-model": Path("unused"),
            "mode": "shared",
            "reporting-goal": 20,
            "min-contributions": 10,
            "plan": {"clipping-norm": 1.0},
            "sharing": {"committee": Path("unused"), **(sharing or {})},
            **changes,
        }
    )
    return SharedTask(committee=COMMITTEE, config=config)


def test_settings_become_parameters() -> None:
    task = shared_task(
        {"format": "cnf-seeded", "checks": "distances", "degraded": "abort", "max-staleness": 2},
        aggregation={"rule": "multi-krum", "num-malicious-nodes": 3, "num-nodes-to-select": 12},
    )
    params = task.parameters(BASE, round_number=7, cohort_size=26)
    assert (params.task, params.round, params.base_version) == ("digits", 7, 4)
    assert (params.threshold, params.holders, params.quorum) == (3, 5, 4)
    assert params.committee_sha256 == COMMITTEE.sha256
    assert (params.format, params.checks) == (ShareFormat.CNF_SEEDED, Checks.DISTANCES)
    assert params.degraded is Degraded.ABORT
    assert (params.rule, params.num_byzantine, params.num_to_select) == ("multi-krum", 3, 12)
    assert (params.min_members, params.max_members) == (6, 20)
    assert params.staleness_weights == (8, 6, 5)


def test_a_smaller_cohort_bounds_the_members() -> None:
    params = shared_task().parameters(BASE, round_number=1, cohort_size=12)
    assert params.max_members == 12


def test_rules_for_group_means_are_no_affair_of_the_holders() -> None:
    task = shared_task(
        {"group-size": 4}, aggregation={"rule": "trimmed-mean", "num-malicious-nodes": 1}
    )
    params = task.parameters(BASE, round_number=1, cohort_size=20)
    assert (params.rule, params.num_byzantine, params.group_size) == ("mean", 0, 4)


def test_without_checks_the_field_is_as_narrow_as_it_can_be() -> None:
    params = shared_task({"checks": "sum"}).parameters(BASE, round_number=1, cohort_size=20)
    assert (params.field_bits, params.num_extras) == (31, 0)


def test_a_bundle_fits_the_tasks_limit() -> None:
    task = shared_task()
    params = task.parameters(BASE, round_number=1, cohort_size=20)
    bundle = SealedUpdate(
        params, COMMITTEE, PHONE, update_of(DIM), device_id="phone-1", model_version=4
    )
    limit = task_info(task.config, dim=DIM, shared=task).max_update_bytes
    assert len(bundle) <= limit <= len(bundle) + 64 * 1024


def test_a_clipping_norm_that_fits_no_field_is_refused() -> None:
    with pytest.raises(SharingError, match="no parameters fit clip_norm=900"):
        shared_task(plan={"clipping-norm": 900.0}).check(dim=DIM)


@pytest.mark.parametrize(("most", "weights"), [(0, (1,)), (1, (8, 6)), (3, (8, 6, 5, 4))])
def test_staleness_weighs_by_its_root(most: int, weights: tuple[int, ...]) -> None:
    assert staleness_weights(most) == weights


def test_weights_never_reach_zero() -> None:
    assert min(staleness_weights(16)) >= 1
