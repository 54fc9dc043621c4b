import subprocess
import sys
from pathlib import Path

import click
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from cli.exit_codes import ExitCode
from cli.main import _COMMANDS, app

ROOT = Path(__file__).parents[2]
COMMANDS = [
    ("demo",),
    ("serve",),
    ("device",),
    ("models", "init"),
    ("models", "import"),
    ("models", "export"),
    ("config", "check"),
    ("admin", "create-ca"),
    ("admin", "enrollment-token"),
    ("admin", "audit", "verify"),
    ("admin", "tasks", "list"),
    ("admin", "tasks", "show"),
    ("admin", "rounds", "list"),
    ("admin", "rounds", "show"),
    ("admin", "models", "list"),
    ("admin", "models", "show"),
    ("admin", "models", "rollback"),
    ("share-holder", "keys"),
    ("share-holder", "committee"),
    ("share-holder", "rehearsal"),
    ("share-holder", "serve"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_and_can_answer_in_json(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == ExitCode.OK
    assert "--format" in result.stdout


def test_help_documents_the_exit_statuses() -> None:
    text = CliRunner().invoke(app, ["--help"]).stdout
    for code in ExitCode:
        assert str(int(code)) in text


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == ExitCode.OK
    assert result.stdout.startswith("fedagg ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["serve"],
        ["demo", "--devices", "0"],
        ["demo", "--aggregator", "nonsense"],
        ["demo", "--attack", "nonsense"],
        ["demo", "--attackers", "21"],
        ["device", "--server", "127.0.0.1:1", "--task", "t"],
        ["device", "--server", "127.0.0.1:1", "--task", "t", "--insecure", "--num-devices", "1",
         "--count", "2"],
        ["device", "--server", "127.0.0.1:1", "--task", "t", "--root-ca", "x", "--certificate",
         "c", "--private-key", "k", "--count", "2"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_arguments_are_told_apart_from_failures(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == ExitCode.USAGE
    assert result.stdout == ""
    assert result.stderr


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "--version"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("fedagg ")


def loaded_by(program: str) -> set[str]:
    """Names of what a fresh interpreter has loaded in the end."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.slow
def test_the_list_of_commands_loads_none_of_them() -> None:
    program = """
from typer.testing import CliRunner
from cli.main import _COMMANDS, app
assert "share-holder" in CliRunner().invoke(app, ["--help"]).stdout
"""
    loaded = loaded_by(program)
    assert "cli.main" in loaded
    assert loaded.isdisjoint(
        {"numpy", "pydantic", "asyncio", "cli.exit_codes", "cli.serve.command"}
    )


@pytest.mark.slow
def test_a_launcher_loads_nothing_that_only_its_processes_need() -> None:
    heavy = {"numba", "scipy", "torch", "grpc", "fastapi", "redis", "dp_accounting"}
    for command in ("cli.serve.command", "cli.holder.command"):
        assert loaded_by(f"import {command}").isdisjoint(heavy)


def test_the_list_says_of_each_command_what_it_says_itself() -> None:
    group = get_command(app)
    assert isinstance(group, click.Group)
    context = click.Context(group)
    for name, told in _COMMANDS.items():
        command = group.get_command(context, name)
        assert command is not None
        assert " ".join((command.help or "").split("\n\n")[0].split()) == told.help
