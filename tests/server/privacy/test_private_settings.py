"""From a task's settings to the noise of its rounds."""

from typing import Any

import pytest

from server.config import TaskConfig
from server.privacy.private_settings import private_settings

CENTRAL = {"noise": "central", "noise-multiplier": 2.0}


def configured(**task: Any) -> TaskConfig:
    tree = {"name": "t", "initial-model": "m", "plan": {"clipping-norm": 1.0}} | task
    return TaskConfig.model_validate(tree)


@pytest.mark.parametrize("privacy", [{}, {"noise": "device", "noise-multiplier": 2.0}])
def test_only_noise_of_the_coordinator_has_settings(privacy: dict[str, Any]) -> None:
    assert private_settings(configured(privacy=privacy)) is None


@pytest.mark.parametrize(("aggregation", "cap"), [({}, 1), ({"max-num-samples": 7}, 7)])
def test_private_updates_weigh_the_same_unless_the_settings_say_otherwise(
    aggregation: dict[str, Any], cap: int
) -> None:
    found = private_settings(configured(privacy=CENTRAL, aggregation=aggregation))
    assert found is not None
    assert found.max_num_samples == cap


def test_the_rule_and_the_adapting_norm_are_those_of_the_task() -> None:
    privacy = CENTRAL | {
        "adaptive-clipping": True,
        "target-quantile": 0.25,
        "clipping-learning-rate": 0.125,
        "count-noise": 3.0,
    }
    found = private_settings(configured(privacy=privacy))
    assert found is not None
    assert (found.rule, found.adapts) == ("mean", True)
    assert (found.target_quantile, found.clipping_learning_rate) == (0.25, 0.125)
    assert found.count_noise == 3.0
