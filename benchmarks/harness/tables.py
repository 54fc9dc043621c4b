"""Tables: in a terminal, in documents, and kept so that a document can be written from them."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from rich.console import Console
from rich.markup import escape
from rich.table import Table as TerminalTable

from benchmarks.harness.figures import Figures
from benchmarks.harness.machine import Machine
from benchmarks.harness.processes import ROOT

KEPT: Final = ROOT / ".benchmarks" / "tables"

_WIDTH: Final = 180  # of text that no terminal shows


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Text cells.

    Attributes:
        lines: the heading, then the lines.
        title: above it; empty: none.
        notes: sentences below it.
    """

    lines: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = ()

    @classmethod
    def of(cls, rows: Sequence[Figures], *, target: str = "") -> Self:
        """Make a line of each row, or one of each figure where there is one row.

        What is wanted stands below: of the whole table, or of rows that say so.
        """
        notes = [f"Target: {target}."] if target else _targets(rows)
        if len(rows) == 1:
            pairs = [[name.replace("_", " "), text_of(value)] for name, value in rows[0].items()]
            return cls(lines=[["figure", "value"], *pairs], notes=notes)
        columns = [name for name in rows[0] if name != "target"] if rows else []
        heading = [name.replace("_", " ") for name in columns]
        lines = [[text_of(row[name]) for name in columns] for row in rows]
        return cls(lines=[heading, *lines], notes=notes)

    def print(self, console: Console) -> None:
        """Show it in a terminal."""
        heading, *others = self.lines
        table = TerminalTable(title=escape(self.title) or None)
        for number, name in enumerate(heading):
            table.add_column(escape(name), justify="right" if number else "left")
        for line in others:
            table.add_row(*map(escape, line))
        console.print(table)
        for note in self.notes:
            console.print(escape(note), soft_wrap=True)

    def markdown(self) -> str:
        """Write it for a document."""
        heading, *others = self.lines
        rule = ["---", *["---:"] * (len(heading) - 1)]
        title = f"#### {self.title}\n\n" if self.title else ""
        lines = "".join(f"| {' | '.join(line)} |\n" for line in (heading, rule, *others))
        return title + lines + "".join(f"\n{note}\n" for note in self.notes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one command found.

    Attributes:
        command: to type for the same again.
        machine: what it ran on.
        tables: in order.
        date: when it was run, UTC.
    """

    command: str
    machine: str
    tables: Sequence[Table]
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d"))

    @property
    def origin(self) -> str:
        """Tell where the figures come from."""
        return f"`{self.command}`, {self.date}. {self.machine}."

    def print(self, console: Console) -> None:
        """Show it in a terminal."""
        for table in self.tables:
            table.print(console)
        console.print(escape(self.origin), soft_wrap=True)

    def markdown(self) -> str:
        """Write it for a document."""
        return "\n".join((f"{self.origin}\n", *(table.markdown() for table in self.tables)))

    def keep(self, name: str) -> None:
        """Write it where `benchmarks.page` looks for it, over an older one."""
        KEPT.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(self), indent=1)
        (KEPT / f"{name}.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def kept(cls, path: Path) -> Self:
        """Read a report that was kept."""
        tree = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**tree, "tables": [Table(**table) for table in tree["tables"]]})


def make_report(command: str, packages: Iterable[str], tables: Sequence[Table]) -> Report:
    """Report what was found here and now."""
    return Report(command=command, machine=str(Machine.here(packages)), tables=tables)


def console(*, to_stderr: bool = False) -> Console:
    """Open a console that breaks no table where nobody sees it."""
    found = Console(stderr=to_stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=to_stderr, highlight=False, width=_WIDTH)


def text_of(value: object) -> str:
    """Write a figure as people read it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if value >= 100 or isinstance(value, int) else f"{value:g}"


def _targets(rows: Sequence[Figures]) -> list[str]:
    """Name each target once, with the numbers of its rows, in one sentence."""
    numbers: dict[str, list[str]] = {}
    for number, row in enumerate(rows, start=1):
        if row.get("target", "-") != "-":
            numbers.setdefault(str(row["target"]), []).append(str(number))
    texts = [f"{', '.join(of)}: {target}" for target, of in numbers.items()]
    return [f"Targets by row, {' | '.join(texts)}."] if texts else []
