"""The configuration names every problem, and nothing half-valid gets through."""

from pathlib import Path

import pytest

from server.config import (
    ConfigError,
    ServerConfig,
    load_config,
    load_holder_config,
    load_settings,
    parse_config,
    parse_holder_config,
)
from server.config.durability import Durability
from tests.looped import looped

SAMPLES = Path(__file__).parents[3] / "docs/samples"
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
    with pytest.raises(ConfigError, match=r"task\[1\]\.num-round: .* did you mean num-rounds"):
        parse({"task": [task]})


def test_an_unknown_section_names_the_nearest_valid_one() -> None:
    with pytest.raises(ConfigError, match="did you mean listen"):
        parse({"listn": {}})


def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(
            {"rounds": {"check-in-ttl-s": 0}, "limits": {"uploads-in-flight": 0}},
            FEDAGG__STOER__URL="redis://db",
        )
    assert caught.value.problems == (
        "FEDAGG__STOER__URL: no such setting, did you mean store.url?",
        "limits.uploads-in-flight: must be a whole number, at least 1 and at most 1024, got 0",
        "rounds.check-in-ttl-s: must be a finite number, at least 1 and at most 86400, got 0",
    )


def test_the_environment_overrides_a_key() -> None:
    config = parse(FEDAGG__STORE__URL="redis://db:6379", FEDAGG__LISTEN__WORKERS="3")
    assert config.store.url == "redis://db:6379"
    assert config.listen.workers == 3


def test_an_override_of_no_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="FEDAGG__STORE: must have the form"):
        parse(FEDAGG__STORE="x")


@looped(
    "variable, text, told",
    [
        ("STORE__URI", "x", "no such setting, did you mean store.url?"),
        ("TASK__NAME", "x", "tasks are set in the file alone"),
        ("STORE__URL__X", "x", "must have the form FEDAGG__SECTION__KEY"),
        ("LISTEN__WORKERS", "many", "listen.workers: must be a whole number"),
        ("TLS__GATEWAYS", "one", "tls.gateways: must be a list"),
        ("ADMIN__TOKEN", "short", "admin.token: must have at least 16 characters"),
    ],
)
def test_a_wrong_override_is_told_by_its_variable(variable: str, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(TREE, {f"FEDAGG__{variable}": text})
    (problem,) = refused.value.problems
    assert problem.startswith(f"FEDAGG__{variable}: {told}")


def test_digits_are_a_text_where_the_setting_is_one() -> None:
    digits = "1234567890123456"
    config = parse(FEDAGG__ADMIN__TOKEN=digits, FEDAGG__STORE__DATA_DIR="7")
    assert config.admin.token is not None
    assert config.admin.token.get_secret_value() == digits
    assert config.store.data_dir == Path("7")
    assert parse(FEDAGG__STORE__URL='"redis://quoted"').store.url == "redis://quoted"
    assert parse(FEDAGG__TLS__GATEWAYS="[]").tls.gateways == ()


def test_one_environment_may_serve_coordinators_and_holders() -> None:
    holder = {"index": 1, "committee": "c", "keys": "k", "device-ca": "a", "data-dir": "d"}
    tree = {"holder": holder, "tls": {"insecure": True}}
    environment = {"FEDAGG__ADMIN__TOKEN": "x" * 16, "FEDAGG__HOLDER__DATA_DIR": "other"}
    assert parse_holder_config(tree, environment).holder.data_dir == Path("other")
    assert parse_config(TREE, environment).admin.token is not None


def test_an_override_does_not_touch_the_tree_given() -> None:
    tree = TREE | {"store": {"url": "redis://a"}}
    parse_config(tree, {"FEDAGG__STORE__URL": "redis://b"})
    assert tree["store"] == {"url": "redis://a"}


def test_a_secret_is_not_in_the_repr() -> None:
    config = parse({"admin": {"token": "hunter2-and-some-more"}})
    assert "hunter2-and-some-more" not in repr(config)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"= 1", "line 1, column 1: not TOML: "),
        (b"[store]\nurl = ", "line 2: not TOML: "),
        (b"[store]\nurl = 1\nurl = 2\n", "line 3, column 8: not TOML: "),
        (b"a = 'unterminated", "line 1: not TOML: "),
        (b"[store]\n# caf\xe9\n", "line 2: not UTF-8 text"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"a = 1" + b"0" * 5_000, "some line: not TOML: "),
    ],
)
def test_a_file_that_is_no_toml_is_named_with_the_line(
    tmp_path: Path, data: bytes, told: str
) -> None:
    path = tmp_path / "server.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as refused:
        load_settings(path, {})
    (problem,) = refused.value.problems
    assert problem.startswith(f"{path}: {told}")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, told in ((tmp_path / "absent.toml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=f"^{path}: {told}"):
            load_config(path, {})


def test_the_sections_of_a_file_tell_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text("[holdr]\nindex = 1\n[policy]\n[log]\n[tls]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="holdr: unknown key, did you mean holder"):
        load_settings(path, {})
    with pytest.raises(ConfigError) as refused:
        load_config(SAMPLES / "share-holder.toml", {})
    assert "is for a share holder" in str(refused.value)
    with pytest.raises(ConfigError, match="is for a coordinator"):
        load_holder_config(SAMPLES / "server.toml", {})
