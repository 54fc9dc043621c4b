"""Tells that a statement is reached, from inside whatever process runs it.

Each line of the file that `PLANTED_FAULTS_REACHED` names is a fault, the test that runs, and
whether this is a process that a test has started rather than pytest itself.
"""

import json
import os

# As they are before a test puts something in their place.
_open, _write, _close = os.open, os.write, os.close
_seen: set[tuple[str, str]] = set()


def reached(fault: str) -> None:
    """Write down that the running test has come to the place of a fault, once for each test."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    path = os.environ.get("PLANTED_FAULTS_REACHED")
    if path is None or (fault, test) in _seen:
        return
    _seen.add((fault, test))
    is_started = os.environ.get("PLANTED_FAULTS_PYTEST") != str(os.getpid())
    file = _open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        _write(file, json.dumps([fault, test, is_started]).encode() + b"\n")
    finally:
        _close(file)
