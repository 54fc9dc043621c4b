"""What a template loads for the tasks of a configuration."""

from pathlib import Path

import pytest

from aggregators.config import AggregatorConfig
from security.secret_sharing import warm_up as secret_sharing
from server import worker
from server.config import parse_config
from server.task import preloading


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was loaded, in order."""
    told: list[str] = []

    def kernels(config: AggregatorConfig) -> None:
        told.append(config.rule)

    monkeypatch.setattr(preloading, "warm_up", kernels)
    monkeypatch.setattr(secret_sharing, "warm_up", lambda: told.append("sharing"))
    monkeypatch.setattr(preloading, "load_accountants", lambda: told.append("accountants"))
    return told


def _preload(task: dict[str, object]) -> None:
    tree = {"tls": {"insecure": True}, "task": [{"name": "t", "initial-model": "m", **task}]}
    for one in parse_config(tree, {}).tasks:
        preloading.preload_task(one)


def test_a_plain_task_needs_the_kernels_of_its_rule(loaded: list[str]) -> None:
    _preload({"aggregation": {"rule": "median"}})
    assert loaded == ["median"]


def test_a_private_task_needs_accountants(loaded: list[str]) -> None:
    plan = {"clipping-norm": 1.0}
    _preload({"plan": plan, "privacy": {"epsilon": 8.0, "delta": 1e-5, "noise": "central"}})
    assert loaded == ["mean", "accountants"]


def test_a_shared_task_needs_the_loops_of_sharing(loaded: list[str]) -> None:
    sharing = {"committee": "c.json"}
    _preload({"mode": "shared", "plan": {"clipping-norm": 1.0}, "sharing": sharing})
    assert loaded == ["mean", "sharing"]


def test_what_is_wrong_is_left_to_the_one_who_opens_the_task(
    loaded: list[str], tmp_path: Path
) -> None:
    _preload({"aggregation": {"rule": "no-such-rule"}})
    worker.preload(["--config", str(tmp_path / "absent.toml")])
    (tmp_path / "wrong.toml").write_text("[listn]\n")
    worker.preload(["--config", str(tmp_path / "wrong.toml")])
    assert loaded == []
