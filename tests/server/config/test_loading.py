"""The configuration names every problem, and nothing half-valid gets through."""

from pathlib import Path

import pytest

from server.config import ConfigError, ServerConfig, TaskConfig, load_config, parse_config
from server.storage.ports import Durability

TREE: dict[str, object] = {
    "tls": {"insecure": True},
    "task": [{"name": "keyboard", "initial-model": "model.safetensors"}],
}


def parse(changes: dict[str, object] | None = None, **environment: str) -> ServerConfig:
    return parse_config(TREE | (changes or {}), environment)


def test_defaults_are_safe() -> None:
    config = parse()
    assert config.listen.grpc == "127.0.0.1:50051"
    assert config.store.durability is Durability.PROCESS
    assert not config.store.allow_weaker_durability
    assert config.tasks[0].quorum == config.tasks[0].reporting_goal


def test_kebab_case_keys_are_read() -> None:
    task = {"name": "t", "initial-model": "m", "reporting-goal": 5, "min-contributions": 3}
    config = parse({"task": [task], "store": {"receipt-retention-s": 60}})
    assert config.tasks[0].reporting_goal == 5
    assert config.tasks[0].quorum == 3
    assert config.store.receipt_retention_s == 60


def test_an_unknown_key_names_the_nearest_valid_one() -> None:
    with pytest.raises(ConfigError, match=r"store\.durabilty: unknown key, did you mean durabil"):
        parse({"store": {"durabilty": "machine"}})


def test_an_unknown_key_of_a_task_names_the_nearest_valid_one() -> None:
    task = {"name": "t", "initial-model": "m", "num-round": 5}
    with pytest.raises(ConfigError, match=r"task\.0\.num-round: .* did you mean num-rounds"):
        parse({"task": [task]})


def test_an_unknown_section_names_the_nearest_valid_one() -> None:
    with pytest.raises(ConfigError, match="did you mean listen"):
        parse({"listn": {}})


def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"store": {"receipt-retention-s": 1}, "limits": {"uploads-in-flight": 0}})
    assert "store.receipt-retention-s" in str(caught.value)
    assert "limits.uploads-in-flight" in str(caught.value)


def test_without_tls_one_must_say_so() -> None:
    with pytest.raises(ConfigError, match="or set insecure = true"):
        parse({"tls": {}})


def test_half_a_tls_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="give certificate, private-key and client-ca"):
        parse({"tls": {"certificate": "c.pem"}})


def test_an_admin_api_that_others_reach_needs_a_token() -> None:
    with pytest.raises(ConfigError, match=r"set admin\.token"):
        parse({"listen": {"http": "0.0.0.0:8080"}})
    parse({"listen": {"http": "0.0.0.0:8080"}, "admin": {"token": "a-token-of-16-characters"}})


def test_enrollment_under_tls_needs_a_port_of_its_own() -> None:
    tls = {"certificate": "c", "private-key": "k", "client-ca": "a"}
    enrollment = {"ca-certificate": "a", "ca-private-key": "k", "token-key": "x" * 32}
    with pytest.raises(ConfigError, match=r"set listen\.enrollment"):
        parse({"tls": tls, "enrollment": enrollment})
    parse({"tls": tls, "enrollment": enrollment, "listen": {"enrollment": "127.0.0.1:50052"}})


def test_two_tasks_may_not_share_a_name() -> None:
    task = {"name": "t", "initial-model": "m"}
    with pytest.raises(ConfigError, match="task names must differ: t"):
        parse({"task": [task, task]})


def test_a_quorum_above_the_goal_is_refused() -> None:
    task = {"name": "t", "initial-model": "m", "reporting-goal": 2, "min-contributions": 3}
    with pytest.raises(ConfigError, match="min-contributions=3 must not exceed reporting-goal=2"):
        parse({"task": [task]})


def test_the_environment_overrides_a_key() -> None:
    config = parse(FEDAGG__STORE__URL="redis://db:6379", FEDAGG__LISTEN__WORKERS="3")
    assert config.store.url == "redis://db:6379"
    assert config.listen.workers == 3


def test_an_override_of_no_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="FEDAGG__STORE must have the form"):
        parse(FEDAGG__STORE="x")


def test_an_override_does_not_touch_the_tree_given() -> None:
    tree = {"tls": {"insecure": True}, "store": {"url": "redis://a"}}
    parse_config(tree, {"FEDAGG__STORE__URL": "redis://b"})
    assert tree["store"] == {"url": "redis://a"}


def test_a_secret_is_not_in_the_repr() -> None:
    config = parse({"admin": {"token": "hunter2-and-some-more"}})
    assert "hunter2-and-some-more" not in repr(config)


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text("= 1", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"server\.toml"):
        load_config(path, {})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        load_config(tmp_path / "absent.toml", {})


SHARED: dict[str, object] = {
    "name": "keyboard",
    "initial-model": "model.safetensors",
    "mode": "shared",
    "plan": {"clipping-norm": 1.0},
    "sharing": {"committee": "committee.json"},
}


def shared(**changes: object) -> TaskConfig:
    return parse({"task": [SHARED | changes]}).tasks[0]


def sharing(**changes: object) -> dict[str, object]:
    return {
        "sharing": {
            "committee": "committee.json",
            **{name.replace("_", "-"): value for name, value in changes.items()},
        }
    }


def test_a_shared_task_needs_little() -> None:
    task = shared()
    assert task.is_shared
    assert (task.sharing.checks, task.sharing.degraded) == ("norm", "wait")
    assert task.min_members == 6


def test_plain_is_the_default_and_has_nothing_to_share() -> None:
    assert not parse().tasks[0].is_shared
    with pytest.raises(ConfigError, match='sharing has no meaning where mode = "plain"'):
        shared(mode="plain")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sharing": {}}, "sharing.committee must name"),
        ({"plan": {}}, "plan.clipping-norm must be > 0"),
        ({"aggregation": {"clipping-norm": 1.0}}, "aggregation.clipping-norm cannot apply"),
        ({"aggregation": {"rule": "median"}}, "rule='median' needs single updates or groups"),
        ({"aggregation": {"rule": "krum"}} | sharing(group_size=3), "would open a single update"),
        ({"aggregation": {"rule": "multi-krum"}}, "picks by distances"),
        (sharing(checks="distances"), "is for multi-krum and distance-outliers"),
        (
            {"aggregation": {"rule": "multi-krum"}} | sharing(checks="distances", group_size=3),
            "is for multi-krum and distance-outliers",
        ),
        (sharing(sketch_dim=1000), "sketch-dim=1000 must be a power of two"),
        (sharing(min_members=11), "min-members=11 must not exceed min-contributions"),
        (sharing(holder_timeout_s=60, max_wait_s=30), "max-wait-s must not be below"),
        (sharing(degraded="sometimes"), "degraded"),
        (sharing(holders_certificate="c"), "holders-private-key go together"),
        (
            sharing(holders_certificate="c", holders_private_key="k"),
            "holders-certificate needs sharing.holders-ca",
        ),
        ({"reporting-goal": 1}, "must not exceed min-contributions, from 2"),
    ],
)
def test_what_cannot_be_shared_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shared(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregation": {"rule": "multi-krum"}} | sharing(checks="distances"),
        {"aggregation": {"rule": "distance-outliers"}} | sharing(checks="distances"),
        {"aggregation": {"rule": "nnm+trimmed-mean"}} | sharing(group_size=3),
        sharing(checks="sum", group_size=3),
    ],
)
def test_what_can_be_shared_is_taken(changes: dict[str, object]) -> None:
    assert shared(**changes).is_shared
