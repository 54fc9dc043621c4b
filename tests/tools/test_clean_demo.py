"""Which interpreters the demo is tried on, and what of the environment reaches it."""

import sys
from pathlib import Path

import pytest

from tools import clean_demo
from tools.clean_demo import Interpreter, Outcome, factory_settings, find, main

VERSION = ".".join(map(str, sys.version_info[:2]))


def program(path: Path, line: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return path


def test_a_shim_that_starts_nothing_is_passed_over(tmp_path: Path) -> None:
    program(tmp_path / "shims" / f"python{VERSION}", "exit 127")
    program(tmp_path / "bin" / f"python{VERSION}", f'exec {sys.executable} "$@"')
    path = f"{tmp_path}/none:{tmp_path}/shims:{tmp_path}/bin"
    environment = {"PATH": path, "PYENV_ROOT": str(tmp_path)}
    assert find(VERSION, environment) == Interpreter(version=VERSION, program=sys.executable)


def test_what_a_version_manager_installed_is_found_beside_its_shims(tmp_path: Path) -> None:
    program(tmp_path / "shims" / f"python{VERSION}", "exit 127")
    installed = tmp_path / "versions" / f"{VERSION}.7" / "bin" / f"python{VERSION}"
    program(installed, f'exec {sys.executable} "$@"')
    environment = {"PATH": f"{tmp_path}/shims", "PYENV_ROOT": str(tmp_path)}
    assert find(VERSION, environment) is not None


def test_a_program_of_another_version_does_not_count(tmp_path: Path) -> None:
    program(tmp_path / "bin" / "python3.99", f'exec {sys.executable} "$@"')
    assert find("3.99", {"PATH": f"{tmp_path}/bin", "PYENV_ROOT": str(tmp_path)}) is None


def test_nobodys_settings_reach_the_clone() -> None:
    kept = factory_settings(
        {
            "HOME": "/home/me",
            "MAKEFLAGS": "-j8",
            "PATH": "/bin",
            "PIP_FIND_LINKS": "/wheels",
            "PIP_CONFIG_FILE": "/etc/pip.conf",
            "PYENV_VERSION": "3.9",
            "PYTHONDONTWRITEBYTECODE": "1",
            "REQUESTS_CA_BUNDLE": "/etc/ssl/ca.pem",
            "VIRTUAL_ENV": "/venv",
        }
    )
    assert kept == {
        "HOME": "/home/me",
        "PATH": "/bin",
        "PIP_CONFIG_FILE": "/dev/null",
        "PYTHONUNBUFFERED": "1",
        "REQUESTS_CA_BUNDLE": "/etc/ssl/ca.pem",
    }


GOOD = Outcome(status=0, setup_s=50.0, first_round_s=4.0, demo_s=6.0)


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ({"3.11": GOOD, "3.12": GOOD}, 0),
        ({"3.11": GOOD, "3.12": None}, 0),
        (
            {"3.11": GOOD, "3.12": Outcome(status=2, setup_s=50.0, first_round_s=None, demo_s=1.0)},
            1,
        ),
        ({"3.11": Outcome(status=0, setup_s=50.0, first_round_s=None, demo_s=1.0)}, 1),
        ({"3.11": None}, 1),
    ],
)
def test_one_failure_fails_and_what_is_missing_is_named(
    outcomes: dict[str, Outcome | None],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def find_one(version: str, _: object) -> Interpreter | None:
        return Interpreter(version=version, program=version) if outcomes[version] else None

    monkeypatch.setattr(clean_demo, "find", find_one)
    monkeypatch.setattr(clean_demo, "run_demo", lambda one: outcomes[one.version])
    assert main(list(outcomes)) == status
    lines = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    for version, outcome in outcomes.items():
        said = lines[f"Python {version}"]
        assert (said == "not found") == (outcome is None)
        assert said.startswith("FAILED") == (outcome is not None and not outcome.is_good)
        assert ("first round 4.0 s, whole demo 6.0 s" in said) == (outcome is GOOD)


def test_set_up_ends_with_the_command_and_the_first_round_with_its_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = ["Installing\n", ".venv/bin/fedagg demo --rounds 3\n", "[ROUND 1/3] accuracy 0.9\n"]
    setup, first_round = clean_demo._times(lines)
    assert setup is not None
    assert first_round is not None
    assert setup <= first_round
    assert clean_demo._times(lines[:1]) == (None, None)
    assert capsys.readouterr().out == "".join([*lines, *lines[:1]])
