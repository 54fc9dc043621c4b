import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.exit_codes import ExitCode
from cli.main import app

VALID = """
[tls]
insecure = true

[[task]]
name = "digits"
initial-model = "m.safetensors"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(VALID)
    return path


def test_a_valid_file_is_told_with_its_tasks(file: Path) -> None:
    result = CliRunner().invoke(app, ["config", "check", str(file)])
    assert result.exit_code == ExitCode.OK
    assert result.stdout == f"{file} is valid; tasks: digits\n"


def test_every_problem_is_told(file: Path) -> None:
    file.write_text(f"{VALID}num-round = 3\nreporting-goal = 0\n")
    result = CliRunner().invoke(app, ["config", "check", str(file)])
    assert result.exit_code == ExitCode.CONFIG
    assert "did you mean num-rounds?" in result.stderr
    assert "reporting-goal" in result.stderr
    assert len(result.stderr.splitlines()) == 2


def test_problems_as_json(file: Path) -> None:
    file.write_text(VALID.replace("true", "3"))
    result = CliRunner().invoke(app, ["config", "check", str(file), "--format", "json"])
    answer = json.loads(result.stdout)
    assert result.exit_code == ExitCode.CONFIG
    assert answer["ok"] is False
    assert len(answer["problems"]) == 1
    assert answer["file"] == str(file)


def test_the_environment_overrides_the_file(file: Path) -> None:
    environment = {"FEDAGG__TLS__INSECURE": "false"}
    result = CliRunner().invoke(app, ["config", "check", str(file)], env=environment)
    assert result.exit_code == ExitCode.CONFIG
