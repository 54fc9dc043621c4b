from pathlib import Path

import pytest

from benchmarks.harness import tables
from benchmarks.harness.figures import Target, judged
from benchmarks.harness.tables import Report, Table, console, make_report, text_of


def test_several_rows_make_a_line_each() -> None:
    table = Table.of([{"case": "a", "cpu_us": 1234.5}, {"case": "b", "cpu_us": 0.25}])
    assert table.lines == [["case", "cpu us"], ["a", "1,234"], ["b", "0.25"]]


def test_one_row_makes_a_line_of_each_figure() -> None:
    table = Table.of([{"p50_ms": 1.5, "rounds": 3}], target="fast")
    assert table.lines == [["figure", "value"], ["p50 ms", "1.5"], ["rounds", "3"]]
    assert table.notes == ["Target: fast."]


def test_targets_of_rows_stand_below_with_their_numbers() -> None:
    limit = Target(name="size", figure=1, limit=2)
    other = Target(name="speed", figure=1, limit=3, unit="m/s")
    targets: list[tuple[Target, ...]] = [(limit,), (), (limit,), (other,)]
    table = Table.of([{"case": "x", **judged(*one)} for one in targets])
    assert table.lines[0] == ["case", "met"]
    assert table.notes == ["Targets by row, 1, 3: size <= 2 | 4: speed <= 3 m/s."]


def test_markdown_has_title_lines_and_notes() -> None:
    table = Table(title="small", lines=[["a", "b"], ["1", "2"]], notes=["so."])
    assert table.markdown() == "#### small\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n\nso.\n"


def test_a_report_says_how_when_and_where(capsys: pytest.CaptureFixture[str]) -> None:
    report = make_report("measure [it]", ["numpy"], [Table(lines=[["a"], ["[b]"]])])
    assert report.markdown().startswith(f"`measure [it]`, {report.date}. ")
    assert ", numpy " in report.machine
    report.print(console())
    text = capsys.readouterr().out
    assert "[b]" in text
    assert "`measure [it]`, 20" in text


def test_what_is_kept_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "KEPT", tmp_path / "new" / "tables")
    table = Table(title="small", lines=[["a"], ["1"]], notes=["so."])
    report = Report(command="measure", machine="here", date="2020-01-02", tables=[table])
    report.keep("suite-name")
    assert Report.kept(tmp_path / "new" / "tables" / "suite-name.json") == report


def test_numbers_are_written_for_people() -> None:
    values = (12345.6, 12345, 0.5, True, "x")
    assert [text_of(value) for value in values] == ["12,346", "12,345", "0.5", "True", "x"]
