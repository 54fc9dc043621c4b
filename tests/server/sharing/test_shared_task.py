"""From a task's settings to the parameters of its rounds."""

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from privacy.charge import Charge
from security.errors import SharingError
from security.shared_round.terms.parameter_facts import Checks, Degraded, ShareFormat
from security.shared_round.update.bundle import SealedUpdate
from server.config import TaskConfig
from server.round.round_privacy import RoundPrivacy
from server.sharing.shared_task import BaseModel, SharedTask, staleness_weights
from server.task.resolving import shared_task as resolved
from server.task.resolving import task_compression, task_info
from tests.security.shared_round.sealed_round import COMMITTEE, PHONE
from tests.server.sharing.updates import update_of
from updates import plan_message
from updates.compression_plan import CompressionPlan, Method

DIM = 300
BASE = BaseModel(version=4, sha256="ab" * 32, dim=DIM)


def configured(sharing: dict[str, Any] | None = None, **changes: Any) -> TaskConfig:
    return TaskConfig.model_validate(
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


def shared_task(sharing: dict[str, Any] | None = None, **changes: Any) -> SharedTask:
    return resolved(configured(sharing, **changes), COMMITTEE)


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
    limit = task_info(configured(), dim=DIM, shared=task).max_update_bytes
    assert len(bundle) <= limit <= len(bundle) + 64 * 1024


def test_a_clipping_norm_that_fits_no_field_is_refused() -> None:
    with pytest.raises(SharingError, match="no parameters fit clip_norm=900"):
        shared_task(plan={"clipping-norm": 900.0}).check(dim=DIM)


@pytest.mark.parametrize(("most", "weights"), [(0, (1,)), (1, (8, 6)), (3, (8, 6, 5, 4))])
def test_staleness_weighs_by_its_root(most: int, weights: tuple[int, ...]) -> None:
    assert staleness_weights(most) == weights


def test_weights_never_reach_zero() -> None:
    assert min(staleness_weights(16)) >= 1


PLAN = CompressionPlan(
    method=Method.PROJECTION, dim=DIM, num_values=30, map_seed=bytes(32), error_feedback=True
)
PRIVACY = RoundPrivacy(
    charge=Charge(noise_multiplier=1.5).to_text(),
    clipping_norm=1.0,
    sensitivity=3.0,
    expected_updates=10.0,
)


def test_what_a_map_gives_is_what_is_shared() -> None:
    task = shared_task()
    params = task.parameters(BASE, round_number=1, cohort_size=20, compression=PLAN)
    assert params.dim == PLAN.num_values
    assert params.compression_sha256 == hashlib.sha256(plan_message.to_bytes(PLAN)).digest()
    plain = task.parameters(BASE, round_number=1, cohort_size=20)
    assert (plain.dim, plain.compression_sha256) == (DIM, b"")


def test_the_limit_of_a_compressed_task_is_that_of_its_map() -> None:
    config = configured(compression={"method": "projection", "ratio": 0.1})
    task = resolved(config, COMMITTEE)
    compression = task_compression(config, (DIM,))
    limits = [
        task_info(config, dim=DIM, shared=task, compression=chosen).max_update_bytes
        for chosen in (None, compression)
    ]
    assert limits[1] < limits[0]
    assert compression is not None
    assert compression.zstd_version == 0


def test_the_holders_noise_hides_one_device() -> None:
    """t - 1 holders who subtract their own noise leave z times the sensitivity."""
    params = shared_task().parameters(BASE, round_number=1, cohort_size=20, privacy=PRIVACY)
    assert params.has_noise
    unknown = params.noise_dealers - params.threshold + 1
    assert params.noise_stddev * math.sqrt(unknown) >= 1.5 * 3.0 * params.norm_bound
    plain = shared_task().parameters(BASE, round_number=1, cohort_size=20)
    assert not plain.has_noise


def test_the_holders_noise_is_enough_for_the_rule_that_is_planned() -> None:
    """Though the round was opened when the rule was another."""
    opened = replace(PRIVACY, sensitivity=1.0)
    rule = {"rule": "multi-krum", "num_malicious_nodes": 2}
    task = shared_task({"checks": "distances"}, aggregation=rule)
    params = task.parameters(BASE, round_number=1, cohort_size=20, privacy=opened)
    unknown = params.noise_dealers - params.threshold + 1
    assert params.noise_stddev * math.sqrt(unknown) >= 1.5 * 5.0 * params.norm_bound


def test_settings_that_noise_does_not_go_with_are_found_at_the_start() -> None:
    task = shared_task({"degraded": "grouped"})
    task.check(dim=DIM)
    with pytest.raises(SharingError, match="GROUPED"):
        task.check(dim=DIM, privacy=PRIVACY)
