"""From a task's settings to the rule, the weights and the noise."""

from typing import Any

import pytest

from aggregators.errors import AggregationError
from privacy.charge import Charge
from server.config import TaskConfig
from server.config.task_config import weight_cap
from server.round.round_privacy import RoundPrivacy
from server.task.aggregation_settings import aggregation_settings, aggregator_config


def configured(**task: Any) -> TaskConfig:
    tree = {"name": "t", "initial-model": "m", "plan": {"clipping-norm": 1.0}} | task
    return TaskConfig.model_validate(tree)


CENTRAL = {"noise": "central", "noise-multiplier": 2.0}
DEVICE = {"noise": "device", "noise-multiplier": 2.0}


@pytest.mark.parametrize(
    ("privacy", "aggregation", "cap"),
    [
        ({}, {}, 1000),
        ({}, {"max-num-samples": 7}, 7),
        (CENTRAL, {}, 1),
        (CENTRAL, {"max-num-samples": 7}, 7),
        (DEVICE, {}, 1),
    ],
)
def test_private_updates_weigh_the_same_unless_the_settings_say_otherwise(
    privacy: dict[str, Any], aggregation: dict[str, Any], cap: int
) -> None:
    task = configured(privacy=privacy, aggregation=aggregation)
    assert weight_cap(task) == cap
    assert aggregator_config(task).max_num_samples == cap


@pytest.mark.parametrize("rule", ["median", "nnm+trimmed-mean", "bulyan"])
def test_rules_that_rank_coordinates_do_not_go_with_top_k(rule: str) -> None:
    aggregation = {"rule": rule, "num-malicious-nodes": 1}
    compression = {"method": "top-k", "ratio": 0.1}
    with pytest.raises(AggregationError, match=r"zeros.*multi-krum"):
        aggregator_config(configured(aggregation=aggregation, compression=compression))
    aggregator_config(configured(aggregation=aggregation, compression=compression | {"ratio": 0.5}))
    aggregator_config(configured(aggregation=aggregation, compression={"method": "rand-k"}))


def test_the_noise_of_devices_widens_the_bound_on_their_norms() -> None:
    task = configured(privacy=DEVICE)
    privacy = RoundPrivacy(
        charge=Charge(noise_multiplier=2.0).to_text(),
        clipping_norm=1.0,
        sensitivity=1.0,
        expected_updates=10.0,
    )
    rule = aggregator_config(task)
    settings = aggregation_settings(task, rule, dim=10_000, privacy=privacy)
    # C^2 + d s^2 and four standard deviations: sqrt(1 + 40,000 * 1.057).
    found = settings.aggregator.byzantine.aggregator
    assert found.clipping_norm == pytest.approx(206, rel=0.01)
    plain = aggregation_settings(configured(), rule, dim=10_000, privacy=None)
    assert plain.aggregator.byzantine.aggregator == rule
