from pathlib import Path

import pytest

from benchmarks import page, pipeline
from benchmarks.codec.__main__ import SUITE as CODEC
from benchmarks.harness.tables import Report, Table
from benchmarks.secure.__main__ import SUITE as SECURE
from benchmarks.service.__main__ import SUITE as SERVICE

TEXT = """before
<!-- table a-one -->
old one
<!-- end -->
between
<!-- table a-two -->
old two
<!-- end -->
after
"""
REPORT = Report(
    command="measure", machine="here", date="2020-01-02", tables=[Table(lines=[["x"], ["1"]])]
)


def test_tables_with_a_report_are_replaced_and_all_else_stays() -> None:
    text = page.rewritten(TEXT, {"a-one": REPORT, "a-three": REPORT})
    assert text == TEXT.replace("old one\n", f"\n{REPORT.markdown()}\n")
    assert "`measure`, 2020-01-02. here." in text
    assert page.rewritten(text, {"a-one": REPORT}) == text


def test_the_command_tells_which_tables_have_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.harness.tables.KEPT", tmp_path)
    REPORT.keep("a-two")
    written = tmp_path / "page.md"
    written.write_text(TEXT)
    assert page.main(written, tmp_path) == 0
    assert capsys.readouterr().out == "a-one: no report is kept: as it was\na-two: 2020-01-02\n"
    assert "old one" in written.read_text()
    assert "old two" not in written.read_text()


def test_every_benchmark_has_a_table_in_the_documentation() -> None:
    suites = (SERVICE, SECURE, CODEC, pipeline.suite(None))
    wanted = [f"{suite.name}-{name}" for suite in suites for name in suite.benchmarks]
    found = page.names_of(page.PAGE.read_text(encoding="utf-8"))
    assert sorted(found) == sorted([*wanted, "kernels-rules"])
