"""Writes the tables of docs/Performance.md from the reports that whole runs keep.

`python -m benchmarks.page` replaces what stands between `<!-- table SUITE-BENCHMARK -->` and
`<!-- end -->` wherever there is a report of that name; no number there is typed by hand.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks.harness.processes import ROOT
from benchmarks.harness.tables import KEPT, Report

PAGE: Final = ROOT / "docs" / "Performance.md"

_TABLE: Final = re.compile(
    r"(?P<begin><!-- table (?P<name>[a-z-]+) -->\n)(?P<text>.*?)(?P<end><!-- end -->\n)", re.DOTALL
)


def names_of(page: str) -> list[str]:
    """List the tables of a page, in order."""
    return [found["name"] for found in _TABLE.finditer(page)]


def rewritten(page: str, reports: Mapping[str, Report]) -> str:
    """Put reports where the page wants them; tables without a report stay."""

    def table(found: re.Match[str]) -> str:
        report = reports.get(found["name"])
        text = found["text"] if report is None else f"\n{report.markdown()}\n"
        return found["begin"] + text + found["end"]

    return _TABLE.sub(table, page)


def main(page: Path = PAGE, kept: Path = KEPT) -> int:
    """Rewrite the page and tell of each table where it comes from."""
    text = page.read_text(encoding="utf-8")
    reports = {path.stem: Report.kept(path) for path in kept.glob("*.json")}
    page.write_text(rewritten(text, reports), encoding="utf-8")
    for name in names_of(text):
        origin = reports[name].date if name in reports else "no report is kept: as it was"
        sys.stdout.write(f"{name}: {origin}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
