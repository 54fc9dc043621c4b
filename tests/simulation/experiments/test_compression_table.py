"""The table: its rows, its comparison with dense updates, its formats."""

import json
from statistics import fmean, pstdev

import pytest

from simulation.experiments import compression_table
from simulation.experiments.compressed_training import Case, Task, train
from simulation.experiments.compression_table import Figures, cases, main, table
from updates.compression_plan import Method, ValueType

TASK = Task(setting="silo", rounds=2)


def test_there_is_a_row_for_every_method_ratio_and_mode() -> None:
    rows = [(method, ratio, shared) for method, ratio, shared, _ in cases(ValueType.INT8)]
    expected = {(Method.DENSE, 1.0, shared) for shared in (False, True)} | {
        (method, ratio, shared)
        for method in Method
        if method is not Method.DENSE
        for ratio in (0.01, 0.1)
        for shared in (False, True)
    }
    assert len(rows) == len(expected) == 18
    assert set(rows) == expected
    assert rows[:2] == [(Method.DENSE, 1.0, False), (Method.DENSE, 1.0, True)]


def test_only_shared_top_k_is_refused_and_cases_are_what_their_rows_say() -> None:
    for method, ratio, shared, case in cases(ValueType.INT8):
        if case is None:
            assert (method, shared) == (Method.TOP_K, True)
        else:
            assert (case.method, case.ratio, case.shared) == (method, ratio, shared)
            assert case.value_type is ValueType.INT8 or method is Method.DENSE


def few(monkeypatch: pytest.MonkeyPatch) -> tuple[Case, Case]:
    dense, projection = Case(method=Method.DENSE), Case(method=Method.PROJECTION, ratio=0.1)
    chosen = [
        (Method.DENSE, 1.0, False, dense),
        (Method.PROJECTION, 0.1, False, projection),
        (Method.TOP_K, 0.1, True, None),
    ]
    monkeypatch.setattr(compression_table, "cases", lambda _: iter(chosen))
    return dense, projection


def test_rows_compare_with_dense_updates_of_their_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, projection = few(monkeypatch)
    reported: list[Figures] = []
    rows = table(TASK, range(2), ValueType.FLOAT16, reported.append)
    assert rows == reported
    runs = {case: [train(TASK, case, seed) for seed in (0, 1)] for case in (dense, projection)}
    scores = {case: [100 * run.accuracy for run in runs[case]] for case in runs}
    sizes = {case: fmean(run.update_bytes for run in runs[case]) for case in runs}
    assert rows[1] == {
        "method": "projection",
        "ratio": 0.1,
        "mode": "plain",
        "accuracy_%": round(fmean(scores[projection]), 2),
        "deviation": round(pstdev(scores[projection]), 2),
        "against_dense": round(fmean(scores[projection]) - fmean(scores[dense]), 2),
        "update_bytes": round(sizes[projection], 2),
        "times_smaller": round(sizes[dense] / sizes[projection], 2),
    }
    assert (rows[0]["against_dense"], rows[0]["times_smaller"]) == (0, 1)
    assert list(rows[2].values()) == ["top-k", 0.1, "shared", *["refused"] * 5]
    assert list(rows[2]) == list(rows[1])


def test_the_command_prints_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few(monkeypatch)
    arguments = ["--quick", "--setting", "silo", "--rounds", "2", "--format", "json"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert (report["dataset"], report["rounds"], report["seeds"]) == ("digits", 2, 1)
    assert report["setting"] == "10 of 10 devices a round"
    assert [row["method"] for row in report["rows"]] == ["dense", "projection", "top-k"]
    assert len(printed.err.splitlines()) == 3


@pytest.mark.parametrize("style", ["markdown", "text"])
def test_the_command_prints_a_table(
    style: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few(monkeypatch)
    assert main(["--quick", "--format", style]) == 0
    about, *lines = capsys.readouterr().out.splitlines()
    assert about.startswith("dataset digits, parameters 9,610, setting 20 of 50 devices a round")
    assert "rounds 3, seeds 1" in about
    cells = [line.replace("|", " ").split() for line in lines if line.strip("|- :")]
    assert cells[0][:4] == ["method", "ratio", "mode", "accuracy"]
    assert [row[:3] for row in cells[1:]] == [
        ["dense", "1", "plain"],
        ["projection", "0.1", "plain"],
        ["top-k", "0.1", "shared"],
    ]
    assert cells[3][3:] == ["refused"] * 5


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--rounds", "0"], "0 must be at least 1"),
        (["--seeds", "-1"], "-1 must be at least 1"),
        (["--residual-decay", "0"], "0.0 must be above 0"),
        (["--setting", "moon"], "invalid choice: 'moon'"),
        (["--dataset", "moons"], "invalid choice: 'moons'"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert problem in capsys.readouterr().err
