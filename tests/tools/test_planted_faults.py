"""Faults fit the tree, tests that reach them are found, and a fault that no test finds survives."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tools.planted_faults import probe
from tools.planted_faults.fault import Fault, FaultError, load_faults, problems
from tools.planted_faults.probes import with_probes
from tools.planted_faults.reach import Reach, measure
from tools.planted_faults.scratch import ROOT, Scratch
from tools.planted_faults.trial import try_fault

FAULT = Fault(name="bound", file="bound.py", breaks="b", old="x > 3", new="x >= 3")
MODULE = "def above(x: int) -> bool:\n    return x > 3\n"


def test_every_fault_fits_the_tree() -> None:
    assert problems(load_faults(), ROOT) == []


def test_tests_named_for_a_fault_are_there() -> None:
    missing = [name for fault in load_faults().values() for name in fault.tests]
    assert [name for name in missing if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    "text", ["x > 4\n", "x > 3 or x > 3\n"], ids=["text is gone", "text is there twice"]
)
def test_a_fault_that_does_not_fit_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "bound.py").write_text(text)
    with pytest.raises(FaultError, match=r"must be in bound\.py once"):
        FAULT.planted(text)
    assert problems({"bound": FAULT}, tmp_path) != []


def test_a_fault_that_changes_nothing_is_refused() -> None:
    same = Fault(name="same", file="bound.py", breaks="b", old="x > 3", new="x > 3")
    with pytest.raises(FaultError, match="changes nothing"):
        same.planted(MODULE)


def test_two_faults_of_one_name_are_refused(tmp_path: Path) -> None:
    one = '[[fault]]\nname = "a"\nfile = "f"\nbreaks = "b"\nold = "1"\nnew = "2"\n'
    (tmp_path / "faults.toml").write_text(one + one)
    with pytest.raises(FaultError, match="a name of its own"):
        load_faults(tmp_path / "faults.toml")


def probed(text: str) -> list[str]:
    """Lines of a module with a probe, which shows as `PROBE`."""
    found = with_probes(text, [FAULT])
    compile(found, "bound.py", "exec")
    return [
        line[: len(line) - len(line.lstrip())] + "PROBE" if "__import__" in line else line
        for line in found.splitlines()
    ]


def test_a_probe_comes_before_the_innermost_statement() -> None:
    text = "def f(x):\n    for _ in range(2):\n        y = (\n            x > 3\n        )\n"
    assert probed(text)[2:4] == ["        PROBE", "        y = ("]


def test_a_probe_comes_before_the_whole_of_an_elif() -> None:
    text = "def f(x):\n    if x:\n        pass\n    elif x > 3:\n        pass\n"
    assert probed(text)[1:3] == ["    PROBE", "    if x:"]


def test_a_probe_comes_inside_a_case_or_a_handler() -> None:
    text = "def f(x):\n    match x:\n        case 1:\n            return x > 3\n"
    assert probed(text)[3] == "            PROBE"
    text = "def f(x):\n    try:\n        pass\n    except ValueError:\n        return x > 3\n"
    assert probed(text)[4] == "        PROBE"


def test_what_is_outside_of_functions_gets_no_probe() -> None:
    assert probed("class A:\n    x = 4\n    y = x > 3\n") == [
        "class A:",
        "    x = 4",
        "    y = x > 3",
    ]


def test_a_probe_tells_of_each_test_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_seen", set())
    monkeypatch.setenv("PLANTED_FAULTS_REACHED", str(tmp_path / "reached"))
    monkeypatch.setenv("PLANTED_FAULTS_PYTEST", str(os.getpid()))
    for test in ("t.py::a (call)", "t.py::a (teardown)", "t.py::b (call)"):
        monkeypatch.setenv("PYTEST_CURRENT_TEST", test)
        probe.reached("bound")
    monkeypatch.setattr(probe, "_seen", set())
    monkeypatch.setenv("PLANTED_FAULTS_PYTEST", "1")
    probe.reached("bound")
    lines = [json.loads(line) for line in (tmp_path / "reached").read_text().splitlines()]
    assert lines == [
        ["bound", "t.py::a", False],
        ["bound", "t.py::b", False],
        ["bound", "t.py::b", True],
    ]


def test_tests_run_by_module_the_quickest_first() -> None:
    reach = Reach(
        tree="",
        seconds={"slow.py::a": 2.0, "quick.py::a": 0.1, "named/t.py::a": 1.0, "slow.py::b": 0.1},
        tests={"bound": frozenset({"slow.py::a", "quick.py::a", "slow.py::b"})},
    )
    assert reach.in_order(FAULT) == ["quick.py::a", "slow.py::a", "slow.py::b"]
    named = Fault(name="bound", file="f", breaks="b", old="1", new="2", tests=("named",))
    assert reach.in_order(named)[:2] == ["quick.py::a", "named/t.py::a"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scratch:
    """A project of one module, with tests that run in a process of their own."""
    # pytest runs in there without the plugins of this environment, which take a second to load.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "xdist.plugin")
    folder = tmp_path / "tree"
    shutil.copytree(ROOT / "tools", folder / "tools")
    (folder / "bound.py").write_text(MODULE)
    (folder / "test_bound.py").write_text(
        "from bound import above\n\n"
        "def test_far():\n    assert above(9)\n\n"
        "def test_at():\n    assert not above(3)\n\n"
        "def test_else():\n    pass\n"
    )
    return Scratch(folder)


@pytest.mark.slow
@pytest.mark.process
def test_a_fault_is_found_by_the_test_that_reaches_it(project: Scratch) -> None:
    reach = measure(project, {"bound": FAULT}, tree="", workers=1)
    assert reach.tests == {"bound": {"test_bound.py::test_far", "test_bound.py::test_at"}}
    project.write("bound.py", MODULE)
    outcome = try_fault(project, FAULT, reach.in_order(FAULT))
    assert (outcome.killed_by, outcome.tests) == ("test_bound.py::test_at", 2)
    assert project.read("bound.py") == MODULE
    assert try_fault(project, FAULT, ["test_bound.py::test_far"]).killed_by == ""
    assert try_fault(project, FAULT, []).killed_by == ""


@pytest.mark.slow
@pytest.mark.process
def test_no_fault_is_judged_by_tests_that_fail_without_one(project: Scratch) -> None:
    bad = "from bound import above\n\ndef test_bad():\n    assert not above(9)\n"
    project.write("test_bad.py", bad)
    reach = measure(project, {"bound": FAULT}, tree="", workers=1)
    assert reach.failed == {"test_bad.py::test_bad"}
    assert "test_bad.py::test_bad" in reach.tests["bound"]
    assert "test_bad.py::test_bad" not in reach.in_order(FAULT)


@pytest.mark.slow
@pytest.mark.process
def test_tests_that_cannot_be_run_judge_nothing(project: Scratch) -> None:
    project.write("test_bound.py", "import nothing_of_that_name\n")
    with pytest.raises(FaultError, match="cannot be run"):
        measure(project, {"bound": FAULT}, tree="", workers=1)
