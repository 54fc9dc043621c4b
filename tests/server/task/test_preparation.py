"""What a task's files and its first round would refuse is told when it is prepared."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from aggregators.engines import engine_options
from cli.holder.committee_files import CommitteePlan, write_committee
from server.config import ConfigError, parse_config
from server.config.findings import Findings
from server.processes.thread_pool import Workers
from server.task.preparation import PreparedTask, prepare_task
from updates.vectors import encode_model

NOW_S = 1.8e9
SHARED: dict[str, Any] = {"mode": "shared", "plan": {"clipping-norm": 1.0}}


@pytest.fixture(scope="module")
def accountants() -> Iterator[Workers]:
    workers = Workers("accountant", threads=1)
    yield workers
    workers.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a committee of five."""
    path = tmp_path_factory.mktemp("files")
    addresses = [f"127.0.0.1:{port}" for port in range(1, 6)]
    write_committee(CommitteePlan(threshold=3, addresses=addresses), path, [])
    (path / "model.safetensors").write_bytes(encode_model({"w": np.zeros(1000, np.float32)}))
    return path


@pytest.fixture
def prepared(folder: Path, accountants: Workers) -> Any:
    """Opens a task with changes; returns it, or the problems."""

    def open_with(**changes: Any) -> PreparedTask | list[str]:
        task = {"name": "t", "initial-model": str(folder / "model.safetensors")} | {
            key.replace("_", "-"): value for key, value in changes.items()
        }
        if task.get("mode") == "shared":
            task["sharing"] = {"committee": str(folder / "committee.json")} | task.get(
                "sharing", {}
            )
        config = parse_config({"tls": {"insecure": True}, "task": [task]}, {}).tasks[0]
        findings = Findings()
        found = prepare_task(config, "task[1].", findings, accountants=accountants, now_s=NOW_S)
        assert (found is None) is bool(findings.problems)
        return findings.problems or found  # type: ignore[return-value]  # one of them is there

    return open_with


def test_a_task_is_its_model_its_rule_and_its_facts(prepared: Any, folder: Path) -> None:
    task = prepared(aggregation={"rule": "multi-krum", "num-malicious-nodes": 3})
    assert (task.info.name, task.info.dim, task.rule.rule) == ("t", 1000, "multi-krum")
    assert task.model == (folder / "model.safetensors").read_bytes()


HALF_FLOATS = save({"w": np.zeros(3, np.float16)})
WHOLE = encode_model({"w": np.arange(3, dtype=np.float32)})


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is empty"),
        (b"not a model", "is no whole safetensors file"),
        (WHOLE[:-1], "is no whole safetensors file"),
        (WHOLE[:20], "is no whole safetensors file"),
        (WHOLE + b"\0", "is no whole safetensors file"),
        (HALF_FLOATS, "tensor 'w' of type float16 must be float32"),
        (encode_model({"w": np.array([np.nan], np.float32)}), "holds NaN or infinity"),
        (save({}), "has no elements"),
        (encode_model({"w": np.zeros((0, 3), np.float32)}), "has no elements"),
    ],
)
def test_a_file_that_is_no_model_is_told(
    prepared: Any, tmp_path: Path, data: bytes, told: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    (problem,) = prepared(initial_model=str(path))
    assert problem.startswith(f"task[1].initial-model: {path}: {told}")


def test_a_file_that_cannot_be_read_is_told(prepared: Any, tmp_path: Path) -> None:
    (problem,) = prepared(initial_model=str(tmp_path))
    assert problem == f"task[1].initial-model: {tmp_path}: Is a directory"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"aggregation": {"rule": "krumm"}},
            "task[1].aggregation.rule: 'krumm' must be one of",
        ),
        (
            {"aggregation": {"rule": "nmm+mean"}},
            "task[1].aggregation.rule: 'nmm+mean': step 'nmm' must be one of",
        ),
        (
            {"aggregation": {"rule": "fltrust"}},
            "task[1].aggregation.rule: 'fltrust' needs root-update, which a coordinator",
        ),
        (
            {"aggregation": {"rule": "multi-krum", "num-malicious-nodes": 4}},
            (
                "task[1].aggregation.num-malicious-nodes: multi-krum needs at least 11 updates"
                " against 4 attackers, reporting-goal=10 gives 10"
            ),
        ),
        (
            {
                "aggregation": {"rule": "multi-krum", "num-malicious-nodes": 3},
                "min-contributions": 8,
            },
            (
                "task[1].aggregation.num-malicious-nodes: multi-krum needs at least 9 updates"
                " against 3 attackers, min-contributions=8 gives 8"
            ),
        ),
        (
            {"aggregation": {"rule": "multi-krum", "malicious-fraction": 0.4}},
            (
                "task[1].aggregation.malicious-fraction: multi-krum needs at least 11 updates"
                " against 4 attackers, reporting-goal=10 gives 10"
            ),
        ),
        (
            {"aggregation": {"rule": "trimmed-mean", "trim": 5}},
            "task[1].aggregation.rule: trimmed-mean needs at least 11 updates",
        ),
        (
            {"aggregation": {"rule": "multi-krum", "num-nodes-to-select": 11}},
            "task[1].aggregation.rule: multi-krum needs at least 11 updates",
        ),
        (
            {"aggregation": {"rule": "bucketing+median", "bucket-size": 11}},
            "task[1].aggregation.rule: bucketing+median needs at least 11 updates",
        ),
        (
            {
                "aggregation": {"rule": "minimum-diameter", "num-malicious-nodes": 49},
                "reporting-goal": 100,
            },
            "task[1].aggregation.num-malicious-nodes: 49 of minimum-diameter",
        ),
        (
            {"aggregation": {"rule": "median"}, "compression": {"method": "top-k", "ratio": 0.1}},
            "task[1].aggregation.rule: 'median' ranks the values of each coordinate",
        ),
        (
            SHARED
            | {"aggregation": {"rule": "multi-krum", "num-malicious-nodes": 4}}
            | {"sharing": {"checks": "distances"}},
            "task[1].aggregation.num-malicious-nodes: multi-krum needs at least 11 updates",
        ),
        (
            SHARED
            | {"aggregation": {"rule": "multi-krum", "num-malicious-nodes": 3}}
            | {"sharing": {"checks": "distances", "min-members": 8}},
            (
                "task[1].sharing.min-members: 8 must not exceed the 7 updates that multi-krum picks"
                " of min-contributions=10"
            ),
        ),
        (
            SHARED
            | {"aggregation": {"rule": "trimmed-mean", "num-malicious-nodes": 2}}
            | {"sharing": {"group-size": 3}},
            (
                "task[1].aggregation.num-malicious-nodes: trimmed-mean needs at least 5 groups of 3"
                " updates against 2 attackers, reporting-goal=10 gives 3"
            ),
        ),
        (
            SHARED
            | {"reporting-goal": 2000, "sharing": {"checks": "distances"}}
            | {"aggregation": {"rule": "multi-krum"}},
            "task[1].reporting-goal: 2000 must be at most 1000",
        ),
        (
            SHARED | {"sharing": {"quorum": 2}},
            "task[1].sharing.quorum: 2 must be in 3..5",
        ),
        (
            SHARED | {"plan": {"clipping-norm": 1e9}},
            "task[1].plan.clipping-norm: ",
        ),
        (
            {"plan": {"clipping-norm": 1.0}}
            | {"privacy": {"noise": "central", "noise-multiplier": 0.1}},
            "task[1].privacy.noise-multiplier: 0.1 is too little for even one round",
        ),
        (
            {"plan": {"clipping-norm": 1.0}}
            | {"privacy": {"noise": "central", "adaptive-clipping": True, "count-noise": 1e-9}},
            "task[1].privacy",
        ),
    ],
)
def test_what_the_first_round_would_refuse_is_told(
    prepared: Any, changes: dict[str, Any], told: str
) -> None:
    (problem,) = prepared(**changes)
    assert problem.startswith(told)
    assert "_" not in problem


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregation": {"rule": "multi-krum", "num-malicious-nodes": 3}},
        {"aggregation": {"rule": "trimmed-mean", "trim": 4}},
        {
            "aggregation": {
                "rule": "multi-krum",
                "num-malicious-nodes": 4,
                "may-degrade": True,
            }
        },
        {"aggregation": {"rule": "bucketing+median", "bucket-size": 10}},
        SHARED
        | {"aggregation": {"rule": "trimmed-mean", "num-malicious-nodes": 1}}
        | {"sharing": {"group-size": 3}},
        SHARED
        | {"aggregation": {"rule": "multi-krum", "num-malicious-nodes": 3}}
        | {"sharing": {"checks": "distances", "min-members": 7}},
    ],
)
def test_what_it_takes_is_taken(prepared: Any, changes: dict[str, Any]) -> None:
    assert isinstance(prepared(**changes), PreparedTask)


@pytest.mark.parametrize("engine", ["torch", "ray"])
def test_an_engine_that_is_not_installed_is_told(
    prepared: Any, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_options, "find_spec", lambda _: None)
    (problem,) = prepared(aggregation={"engine": engine})
    told = f"{engine!r} needs the extra fedagg[{engine}], which is not installed"
    assert problem == f"task[1].aggregation.engine: {told}"


@pytest.mark.parametrize("data", [b"", b"{}", b"[1", b'{"version": 2}'])
def test_a_file_that_is_no_committee_is_told(prepared: Any, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "committee.json"
    path.write_bytes(data)
    (problem,) = prepared(**SHARED, sharing={"committee": str(path)})
    assert problem.startswith(f"task[1].sharing.committee: {path}: ")


def test_holders_that_nobody_can_call_are_told(prepared: Any, tmp_path: Path) -> None:
    addresses = ["127.0.0.1:1", "", "127.0.0.1:3"]
    write_committee(
        CommitteePlan(threshold=2, addresses=addresses, listen=["x:1"] * 3), tmp_path, []
    )
    (problem,) = prepared(**SHARED, sharing={"committee": str(tmp_path / "committee.json")})
    assert problem.endswith("has no address of holder-2")


def test_files_that_holders_are_called_with_are_read(prepared: Any, folder: Path) -> None:
    model = str(folder / "model.safetensors")
    problems = prepared(
        **SHARED,
        sharing={
            "holders-ca": str(folder / "absent.pem"),
            "holders-certificate": model,
            "holders-private-key": model,
        },
    )
    assert [problem.partition(": ")[0] for problem in problems] == [
        "task[1].sharing.holders-ca",
        "task[1].sharing.holders-certificate",
        "task[1].sharing.holders-private-key",
    ]


def test_a_contradiction_is_for_the_settings_to_tell() -> None:
    with pytest.raises(ConfigError):
        parse_config({"task": []}, {})
