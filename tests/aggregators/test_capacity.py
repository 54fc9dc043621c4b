"""The least number of updates that is told is the one at which a rule begins to work."""

import numpy as np
import pytest

from aggregators.base import GradientAggregator, Update
from aggregators.capacity import least_updates, require_capacity
from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.registry import RULES, STEPS
from tests.looped import looped

SERVED = sorted(name for name, traits in RULES.items() if not traits.needs)
PIPELINES = [f"{step}+{rule}" for step in sorted(STEPS) for rule in ("median", "krum", "mean")]
CHAINS = ["bucketing+nnm+multi-krum", "arc+bucketing+bulyan"]


def aggregate(config: AggregatorConfig, num_updates: int) -> None:
    rng = np.random.default_rng(1)
    GradientAggregator(config).aggregate(
        [
            Update(key=f"{i:03}", vector=rng.standard_normal(40).astype(np.float32), num_samples=1)
            for i in range(num_updates)
        ]
    )


@pytest.mark.parametrize("rule", [*SERVED, *PIPELINES, *CHAINS])
@looped("num_byzantine", [0, 1, 2])
def test_so_many_do_and_one_fewer_do_not(rule: str, num_byzantine: int) -> None:
    config = AggregatorConfig(rule=rule, num_malicious_nodes=num_byzantine)
    least = least_updates(config)
    aggregate(config, least)
    aggregate(config, least + 1)
    require_capacity(config, least)
    with pytest.raises(TooFewUpdatesError, match=f"n >= {least} updates, got n={least - 1}"):
        require_capacity(config, least - 1)
    if least > 1:
        with pytest.raises(TooFewUpdatesError):
            aggregate(config, least - 1)


@pytest.mark.parametrize(
    "config",
    [
        AggregatorConfig(rule="trimmed-mean", num_malicious_nodes=4, trim=1),
        AggregatorConfig(rule="multi-krum", num_malicious_nodes=1, num_to_select=9),
        AggregatorConfig(rule="bucketing+median", num_malicious_nodes=1, bucket_size=5),
    ],
    ids=str,
)
def test_settings_of_rules_and_steps_count(config: AggregatorConfig) -> None:
    least = least_updates(config)
    aggregate(config, least)
    with pytest.raises(TooFewUpdatesError):
        aggregate(config, least - 1)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(AggregationError, match="must be one of"):
        least_updates(AggregatorConfig(rule="krumm"))
