"""pytest's side: writes down how long each test took and which failed, one JSON line each.

Lines go to the file that `PLANTED_FAULTS_TESTS` names, from the process that reports.
"""

import json
import os
from pathlib import Path

import pytest

# Imported before any test replaces what it uses.
from tools.planted_faults import probe

os.environ["PLANTED_FAULTS_PYTEST"] = str(os.getpid())
_IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down the end of a test's set-up, call or tear-down."""
    path = os.environ.get("PLANTED_FAULTS_TESTS")
    if path is None or _IS_WORKER:
        return
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps([report.nodeid, report.duration, report.failed]) + "\n")


def pytest_report_header() -> str:
    """Say that the run is watched."""
    return f"planted faults: watched by {probe.__name__}"
