"""One run of the whole suite: it must pass, and tells which tests reach which fault."""

import json
import subprocess
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tools.planted_faults.fault import Fault, FaultError
from tools.planted_faults.probes import with_probes
from tools.planted_faults.scratch import ROOT, Scratch

KEPT: Final = ROOT / ".planted_faults" / "reach.json"
SHOWN_LINES: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What the run told.

    Attributes:
        tree: content of the tree that ran.
        seconds: how long each test took.
        tests: by fault, the tests that reached its place.
        failed: tests that fail where no fault is planted, and so judge nothing.
    """

    tree: str
    seconds: Mapping[str, float]
    tests: Mapping[str, frozenset[str]]
    failed: frozenset[str] = frozenset()

    def in_order(self, fault: Fault) -> list[str]:
        """Return the tests that can find a fault, module by module, the quickest first."""
        wanted = self.tests.get(fault.name, frozenset())
        judges = [test for test in self.seconds if test not in self.failed]
        by_module: defaultdict[str, list[str]] = defaultdict(list)
        for test in judges:
            if test in wanted or (fault.tests and test.startswith(fault.tests)):
                by_module[_module(test)].append(test)

        def seconds(tests: list[str]) -> float:
            return sum(self.seconds[test] for test in tests)

        modules = sorted(by_module.values(), key=seconds)
        return [test for tests in modules for test in tests]


def measure(
    scratch: Scratch,
    faults: Mapping[str, Fault],
    *,
    tree: str,
    workers: int,
    selection: Sequence[str] = (),
) -> Reach:
    """Run all tests with probes in place.

    Args:
        scratch: where they run.
        faults: whose places are watched.
        tree: what the tree holds.
        workers: processes that run tests.
        selection: arguments of pytest that leave tests out.

    Raises:
        FaultError: if no test runs.
    """
    by_file: defaultdict[str, list[Fault]] = defaultdict(list)
    for fault in faults.values():
        by_file[fault.file].append(fault)
    for file, own in by_file.items():
        if file.endswith(".py"):
            scratch.write(file, with_probes(scratch.read(file), own))
    reached, tests = (scratch.folder.parent / name for name in ("reached", "tests"))
    run = scratch.pytest(
        *("-n", str(workers), "--dist", "worksteal", *selection),
        environment={"PLANTED_FAULTS_REACHED": str(reached), "PLANTED_FAULTS_TESTS": str(tests)},
    )
    rows = list(read_lines(tests))
    failed = _failing_alone(scratch, run, {test for test, _, has_failed in rows if has_failed})
    return replace(_reach(tree, read_lines(reached), rows), failed=failed)


def _failing_alone(
    scratch: Scratch, run: "subprocess.CompletedProcess[str]", failed: Collection[str]
) -> frozenset[str]:
    """Run what failed once more: a deadline that a busy machine broke says nothing.

    Raises:
        FaultError: if the run failed otherwise.
    """
    if run.returncode == 0:
        return frozenset()
    if not failed:
        shown = "\n".join(run.stdout.splitlines()[-SHOWN_LINES:])
        msg = f"the tests cannot be run where no fault is planted:\n{shown}"
        raise FaultError(msg)
    names, told = (scratch.folder.parent / name for name in ("failed", "again"))
    names.write_text("\n".join(sorted(failed)), encoding="utf-8")
    scratch.pytest(f"@{names}", environment={"PLANTED_FAULTS_TESTS": str(told)})
    return frozenset(test for test, _, has_failed in read_lines(told) if has_failed)


def load(tree: str | None) -> Reach | None:
    """Return what an earlier run told of this tree, or with None of any; None: nothing."""
    if not KEPT.exists():
        return None
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    if tree is not None and kept["tree"] != tree:
        return None
    tests = {fault: frozenset(names) for fault, names in kept["tests"].items()}
    return Reach(
        tree=kept["tree"],
        seconds=kept["seconds"],
        tests=tests,
        failed=frozenset(kept["failed"]),
    )


def keep(reach: Reach) -> None:
    """Keep it for the next time."""
    KEPT.parent.mkdir(exist_ok=True)
    content = {
        "tree": reach.tree,
        "seconds": reach.seconds,
        "tests": {fault: sorted(names) for fault, names in reach.tests.items()},
        "failed": sorted(reach.failed),
    }
    KEPT.write_text(json.dumps(content), encoding="utf-8")


def _reach(tree: str, reached: Iterable[Any], tests: Iterable[Any]) -> Reach:
    seconds: defaultdict[str, float] = defaultdict(float)
    for test, duration, _ in tests:
        seconds[test] += duration
    by_module: defaultdict[str, set[str]] = defaultdict(set)
    for test in seconds:
        by_module[_module(test)].add(test)
    found: defaultdict[str, set[str]] = defaultdict(set)
    for fault, test, is_started in reached:
        # A process may serve all tests of a module; it only knows the one that started it.
        found[fault] |= by_module[_module(test)] if is_started else {test} & seconds.keys()
    return Reach(
        tree=tree,
        seconds=dict(seconds),
        tests={fault: frozenset(names) for fault, names in found.items()},
    )


def _module(test: str) -> str:
    return test.partition("::")[0]


def read_lines(path: Path) -> Iterator[Any]:
    """Read the JSON lines of a file; none where it is not there."""
    if path.exists():
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())
