import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from benchmarks.harness import tables
from benchmarks.harness.cases import Benchmark, Case, Suite
from benchmarks.harness.command import run_suite
from benchmarks.harness.figures import Figures


def _case(name: str) -> Case:
    def full(repeats: int) -> Iterable[Figures]:
        yield {"case": name, "repeats": repeats}

    return Case(name=name, full=full, quick=full)


SUITE = Suite(
    name="suite",
    command="bench-suite",
    benchmarks={
        "first": Benchmark(
            cases=[_case("a"), _case("b")],
            repeats=3,
            target="all well",
        ),
        "second": Benchmark(cases=[], missing=lambda: "nobody has it"),
    },
    packages=("numpy",),
    describe="Measure nothing.",
)


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tables, "KEPT", tmp_path)
    return tmp_path


def test_results_are_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_suite(SUITE, ["--format", "json"]) == 0
    stdout, stderr = capsys.readouterr()
    report = json.loads(stdout)
    assert report["quick"] is False
    assert "numpy" in report["machine"]
    rows = [{"case": "a", "repeats": 3}, {"case": "b", "repeats": 3}]
    assert report["results"] == {"first": rows}
    assert "second is left out: nobody has it" in stderr


def test_every_table_says_how_to_measure_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    run_suite(SUITE, ["first", "--repeats", "2", "--case", "b"])
    text = capsys.readouterr().out
    assert "`make bench-suite ARGS=\"first --case 'b' --repeats 2\"`, 20" in text
    assert "Target: all well." in text


def test_whole_tables_are_kept_and_no_others(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_suite(SUITE, ["--quick"])
    run_suite(SUITE, ["--case", "a"])
    assert list(kept.iterdir()) == []
    run_suite(SUITE, ["--format", "markdown"])
    assert [path.name for path in kept.iterdir()] == ["suite-first.json"]
    assert "### first" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("third", "no benchmark named third; there are first, second"),
        ("--repeats=0", "--repeats=0 must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused(
    argument: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_suite(SUITE, [argument])
    assert problem in capsys.readouterr().err
