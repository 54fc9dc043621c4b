from dataclasses import replace
from pathlib import Path

import pytest

from aggregators.config import AggregatorConfig
from aggregators.registry import RULES, make_rule
from cli.demo.settings import TASK, DemoAddresses, DemoSettings, server_toml
from cli.exit_codes import CliError, ExitCode
from server.config import ServerConfig, load_config
from simulation.scenarios import Scenario

ADDRESSES = DemoAddresses(grpc="127.0.0.1:1", http="127.0.0.1:2", metrics="127.0.0.1:3")


def _config(settings: DemoSettings, folder: Path) -> ServerConfig:
    path = folder / "server.toml"
    path.write_text(server_toml(settings, ADDRESSES, folder))
    return load_config(path, {})


def test_the_configuration_says_what_the_settings_say(tmp_path: Path) -> None:
    scenario = Scenario(num_devices=11, num_rounds=3, local_epochs=4, batch_size=5, seed=6)
    config = _config(DemoSettings(scenario=scenario), tmp_path)
    (task,) = config.tasks
    assert (config.listen.grpc, config.listen.http) == (ADDRESSES.grpc, ADDRESSES.http)
    assert config.listen.metrics == ADDRESSES.metrics
    assert task.name == TASK
    assert (task.num_rounds, task.reporting_goal, task.over_selection) == (3, 11, 1.0)
    assert task.quorum == 9  # 80 % of eleven, and not less
    assert (task.plan.local_epochs, task.plan.batch_size) == (4, 5)
    assert task.plan.learning_rate == scenario.learning_rate
    assert config.store.data_dir.is_relative_to(tmp_path)


SERVED = sorted(name for name, spec in RULES.items() if not spec.traits.needs)


@pytest.mark.parametrize("rule", [*SERVED, "nnm+trimmed-mean"])
def test_a_rule_is_told_of_the_attackers_it_has_to_withstand(rule: str, tmp_path: Path) -> None:
    scenario = replace(Scenario(), attack="sign-flip", num_attackers=4)
    config = _config(DemoSettings(scenario=scenario, aggregator=rule), tmp_path)
    aggregation = config.tasks[0].aggregation
    assert aggregation.rule == rule
    assert aggregation.num_malicious_nodes == (0 if rule == "mean" else 4)
    assert aggregation.trim is None
    make_rule(AggregatorConfig(rule=rule, num_malicious_nodes=aggregation.num_malicious_nodes))


def test_paths_with_odd_characters_arrive_whole(tmp_path: Path) -> None:
    folder = tmp_path / 'a "b" \\ ü'
    folder.mkdir()
    config = _config(DemoSettings(scenario=Scenario()), folder)
    assert config.tasks[0].initial_model.parent == folder


def test_an_unknown_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CliError, match="multi-krum") as raised:
        DemoSettings(scenario=Scenario(), aggregator="krumm")
    assert raised.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize("rule", ["fltrust", "fedmi"])
def test_a_rule_that_needs_what_the_demo_lacks_is_refused(rule: str) -> None:
    with pytest.raises(CliError, match="which the demo lacks") as raised:
        DemoSettings(scenario=Scenario(), aggregator=rule)
    assert raised.value.exit_code is ExitCode.USAGE
