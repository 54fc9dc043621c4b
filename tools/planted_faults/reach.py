"""One run of the whole suite: it must pass, and tells which tests reach which fault."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    """

    tree: str
    seconds: Mapping[str, float]
    tests: Mapping[str, frozenset[str]]

    def in_order(self, fault: Fault) -> list[str]:
        """Return the tests that can find a fault, module by module, the quickest first."""
        wanted = self.tests.get(fault.name, frozenset())
        by_module: defaultdict[str, list[str]] = defaultdict(list)
        for test in self.seconds:
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
        FaultError: if a test fails where no fault is planted.
    """
    by_file: defaultdict[str, list[Fault]] = defaultdict(list)
    for fault in faults.values():
        by_file[fault.file].append(fault)
    for file, own in by_file.items():
        if file.endswith(".py"):
            scratch.write(file, with_probes(scratch.read(file), own))
    reached, tests = (scratch.folder.parent / name for name in ("reached", "tests"))
    run = scratch.pytest(
        *("-n", str(workers), "--dist", "loadfile", *selection),
        environment={"PLANTED_FAULTS_REACHED": str(reached), "PLANTED_FAULTS_TESTS": str(tests)},
    )
    rows = list(read_lines(tests))
    failed = {test for test, _, has_failed in rows if has_failed}
    if run.returncode != 0:
        _require_pass_alone(scratch, run.stdout, sorted(failed))
    return _reach(tree, read_lines(reached), rows)


def _require_pass_alone(scratch: Scratch, told: str, failed: Sequence[str]) -> None:
    """Run what failed once more: a deadline that a busy machine broke says nothing.

    Raises:
        FaultError: if one fails again, or the run failed otherwise.
    """
    names = scratch.folder.parent / "failed"
    names.write_text("\n".join(failed), encoding="utf-8")
    if not failed or (again := scratch.pytest(f"@{names}", environment={})).returncode != 0:
        told = again.stdout if failed else told
        shown = "\n".join(told.splitlines()[-SHOWN_LINES:])
        msg = f"the tests must pass where no fault is planted:\n{shown}"
        raise FaultError(msg)


def load(tree: str | None) -> Reach | None:
    """Return what an earlier run told of this tree, or with None of any; None: nothing."""
    if not KEPT.exists():
        return None
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    if tree is not None and kept["tree"] != tree:
        return None
    tests = {fault: frozenset(names) for fault, names in kept["tests"].items()}
    return Reach(tree=kept["tree"], seconds=kept["seconds"], tests=tests)


def keep(reach: Reach) -> None:
    """Keep it for the next time."""
    KEPT.parent.mkdir(exist_ok=True)
    content = {
        "tree": reach.tree,
        "seconds": reach.seconds,
        "tests": {fault: sorted(names) for fault, names in reach.tests.items()},
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
