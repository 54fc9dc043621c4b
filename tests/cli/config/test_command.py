"""`fedagg config check` tells every problem of every kind of file, and what is in a valid one."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.exit_codes import ExitCode
from cli.holder.committee_files import HOLDER_CONFIG, CommitteePlan, holder_name, write_committee
from cli.main import app
from simulation.models import initial_weights
from updates.vectors import encode_model

GOAL = "must be a whole number, at least 1 and at most 100000"


@pytest.fixture
def valid(tmp_path: Path) -> str:
    model = tmp_path / "m.safetensors"
    model.write_bytes(encode_model(initial_weights("digits", seed=0)))
    return f"""
[tls]
insecure = true

[store]
data-dir = "{tmp_path}/data"

[[task]]
name = "digits"
initial-model = "{model}"
"""


@pytest.fixture
def file(tmp_path: Path, valid: str) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(valid)
    return path


def test_a_valid_file_is_told_with_its_tasks(file: Path) -> None:
    before = sorted(file.parent.rglob("*"))
    result = CliRunner().invoke(app, ["config", "check", str(file)])
    assert result.exit_code == ExitCode.OK
    assert result.stdout == f"{file} is valid; tasks: digits\n"
    assert sorted(file.parent.rglob("*")) == before


def test_the_file_of_a_holder_is_told_with_its_place(tmp_path: Path) -> None:
    plan = CommitteePlan(threshold=2, addresses=["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"])
    write_committee(plan, tmp_path, [])
    path = tmp_path / holder_name(2) / HOLDER_CONFIG
    result = CliRunner().invoke(app, ["config", "check", str(path)])
    assert result.stdout == f"{path} is valid; share holder: 2 of 3\n"
    (tmp_path / "committee.json").write_text("{}")
    result = CliRunner().invoke(app, ["config", "check", str(path), "--format", "json"])
    assert result.exit_code == ExitCode.CONFIG
    (problem,) = json.loads(result.stdout)["problems"]
    assert problem.startswith(f"holder.committee: {tmp_path}/committee.json: ")


def test_every_problem_is_told_of_settings_and_of_files(file: Path, valid: str) -> None:
    file.write_text(f"{valid}num-round = 3\nreporting-goal = 0\n")
    (file.parent / "m.safetensors").write_bytes(b"")
    result = CliRunner().invoke(app, ["config", "check", str(file)])
    assert result.exit_code == ExitCode.CONFIG
    assert result.stderr.splitlines() == [
        "fedagg: task[1].num-round: unknown key, did you mean num-rounds?",
        f"fedagg: task[1].reporting-goal: {GOAL}, got 0",
        f"fedagg: task[1].initial-model: {file.parent}/m.safetensors: is empty",
    ]


def test_problems_as_json(file: Path, valid: str) -> None:
    file.write_text(valid.replace("true", "3"))
    result = CliRunner().invoke(app, ["config", "check", str(file), "--format", "json"])
    answer = json.loads(result.stdout)
    assert result.exit_code == ExitCode.CONFIG
    assert answer == {
        "file": str(file),
        "ok": False,
        "problems": ["tls.insecure: must be true or false, got 3"],
    }


def test_the_environment_overrides_the_file(file: Path) -> None:
    environment = {"FEDAGG__TLS__INSECURE": "false"}
    result = CliRunner().invoke(app, ["config", "check", str(file)], env=environment)
    assert result.exit_code == ExitCode.CONFIG
