"""`make bench-kernels` still keeps a history of every rule."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kernels.rules import RULES

ROOT = Path(__file__).resolve().parents[3]

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.long]


def test_every_rule_has_a_history() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "benchmarks/kernels"]
    # pytest-benchmark will not start in what it takes for a worker of pytest-xdist.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    output = subprocess.run(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, check=True, text=True
    ).stdout
    tests = {line.partition("::")[2] for line in output.splitlines() if "::" in line}
    assert tests == {f"test_rule[{rule}]" for rule in RULES}
