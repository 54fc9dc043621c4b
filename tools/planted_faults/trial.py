"""Plants a fault and runs the tests that reach it, until one fails."""

import time
from dataclasses import dataclass
from typing import Final

from tools.planted_faults.fault import Fault
from tools.planted_faults.reach import read_lines
from tools.planted_faults.scratch import Scratch

_PASSED, _NONE_RAN = 0, 5
_UNREADABLE: Final = "(the tests cannot be loaded)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a fault fared.

    Attributes:
        fault: its name.
        killed_by: the test that failed; empty where it survived.
        tests: how many reach it.
        seconds: until the first failed, or all had passed.
    """

    fault: str
    killed_by: str
    tests: int
    seconds: float


def try_fault(scratch: Scratch, fault: Fault, tests: list[str]) -> Outcome:
    """Plant a fault, run the tests in order until one fails, take the fault out again."""
    before = scratch.read(fault.file)
    names, told = (scratch.folder.parent / name for name in ("names", "tests"))
    names.write_text("\n".join(tests), encoding="utf-8")
    told.unlink(missing_ok=True)
    started = time.monotonic()
    scratch.write(fault.file, fault.planted(before))
    try:
        status = _PASSED
        if tests:
            told_to = {"PLANTED_FAULTS_TESTS": str(told)}
            status = scratch.pytest("-x", f"@{names}", environment=told_to).returncode
    finally:
        scratch.write(fault.file, before)
    failed = [test for test, _, has_failed in read_lines(told) if has_failed]
    killed_by = ""
    if status not in {_PASSED, _NONE_RAN}:
        killed_by = failed[0] if failed else _UNREADABLE
    return Outcome(
        fault=fault.name,
        killed_by=killed_by,
        tests=len(tests),
        seconds=round(time.monotonic() - started, 1),
    )
