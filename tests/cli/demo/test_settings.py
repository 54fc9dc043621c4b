from dataclasses import replace
from pathlib import Path

import pytest

from aggregators.config import AggregatorConfig
from aggregators.pipeline import make_rule
from aggregators.registry import RULES
from cli.demo.settings import (
    TASK,
    DemoAddresses,
    DemoSettings,
    SharedSettings,
    min_members,
    server_toml,
)
from cli.demo.terms import CompressionTerms, ToldPrivacy
from server.config import ServerConfig, load_config
from simulation.fleet.scenarios import Scenario

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


SERVED = sorted(name for name, traits in RULES.items() if not traits.needs)


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


def _shared_config(settings: DemoSettings, folder: Path) -> ServerConfig:
    path = folder / "server.toml"
    committee = folder / "committee.json"
    path.write_text(server_toml(settings, ADDRESSES, folder, committee=committee))
    return load_config(path, {})


def test_a_shared_task_clips_checks_and_names_its_committee(tmp_path: Path) -> None:
    (task,) = _shared_config(
        DemoSettings(scenario=Scenario(), shared=SharedSettings()), tmp_path
    ).tasks
    assert task.is_shared
    assert task.plan.clipping_norm > 0
    assert task.sharing.committee == tmp_path / "committee.json"
    assert task.sharing.checks == "norm"
    # Half a unit of the last place: what one value is off by at most.
    assert 2.0 ** -(task.sharing.fraction_bits + 1) < 1e-6


def test_a_rule_by_distances_has_them_opened(tmp_path: Path) -> None:
    scenario = replace(Scenario(), attack="sign-flip", num_attackers=6)
    settings = DemoSettings(scenario=scenario, aggregator="multi-krum", shared=SharedSettings())
    (task,) = _shared_config(settings, tmp_path).tasks
    assert task.sharing.checks == "distances"
    assert task.aggregation.num_malicious_nodes == 6
    # Sixteen updates are enough for a round, and six of them may be left out.
    assert task.min_members == min_members(settings) == 10


def test_other_rules_work_on_groups_and_are_told_how_many_can_be_spoiled(tmp_path: Path) -> None:
    scenario = replace(Scenario(), attack="sign-flip", num_attackers=6)
    settings = DemoSettings(
        scenario=scenario, aggregator="median", shared=SharedSettings(group_size=4)
    )
    (task,) = _shared_config(settings, tmp_path).tasks
    assert (task.sharing.group_size, task.sharing.checks) == (4, "norm")
    assert task.min_members == 4
    assert task.aggregation.num_malicious_nodes == 1  # of four groups


def test_compression_and_privacy_reach_the_configuration(tmp_path: Path) -> None:
    settings = DemoSettings(
        scenario=Scenario(),
        compression=CompressionTerms(method="top-k", ratio=0.01, value_type="int8"),
        privacy=ToldPrivacy(epsilon=4.0, delta=1e-6, clipping_norm=0.5),
    )
    (task,) = _config(settings, tmp_path).tasks
    compression, privacy = task.compression, task.privacy
    assert (compression.method, compression.ratio, compression.value_type) == (
        "top-k",
        0.01,
        "int8",
    )
    assert (privacy.noise, privacy.epsilon, privacy.delta) == ("central", 4.0, 1e-6)
    assert task.plan.clipping_norm == 0.5


def test_share_holders_deal_the_noise_of_a_shared_demonstration(tmp_path: Path) -> None:
    settings = DemoSettings(
        scenario=Scenario(), shared=SharedSettings(), privacy=ToldPrivacy(clipping_norm=0.5)
    )
    (task,) = _config(settings, tmp_path).tasks
    assert task.privacy.noise == "holders"
    assert task.plan.clipping_norm == 0.5
