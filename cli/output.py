"""What commands write: text for people or one JSON object, and errors in the same form."""

import json
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from types import TracebackType
from typing import Annotated, Self

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.contradictions import OptionsError
from cli.exit_codes import ExitCode, exit_code_of
from server.config import ConfigError

Json = Mapping[str, object] | Sequence[object]


class OutputFormat(Enum):
    """How a command answers."""

    TEXT = "text"
    JSON = "json"


FormatOption = Annotated[
    OutputFormat, typer.Option("--format", help="Write text for people, or one JSON object.")
]


class Output:
    """Where one command writes to; a context that turns known errors into an exit status.

    Standard output gets the answer and nothing else, standard error everything else.
    """

    def __init__(self, output_format: OutputFormat) -> None:
        self.is_json = output_format is OutputFormat.JSON
        self.console = Console(highlight=False, soft_wrap=True)
        self.stderr = Console(stderr=True, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is None or isinstance(exc, typer.Exit):
            return
        if isinstance(exc, KeyboardInterrupt):
            self.error("interrupted", ExitCode.INTERRUPTED)
            raise typer.Exit(ExitCode.INTERRUPTED) from exc
        code = exit_code_of(exc)
        if code is not None:
            problems: tuple[str, ...] = (str(exc),)
            if isinstance(exc, ConfigError | OptionsError):
                problems = exc.problems
            for problem in problems:
                self.error(problem, code)
            raise typer.Exit(code) from exc

    def json(self, answer: Json) -> None:
        """Write the answer as one line of JSON."""
        sys.stdout.write(json.dumps(answer, allow_nan=False) + "\n")
        sys.stdout.flush()

    def line(self, text: str) -> None:
        """Write one line of text."""
        self.console.print(escape(text))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Write a table; empty cells for None."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*("" if cell is None else escape(str(cell)) for cell in row))
        self.console.print(table, soft_wrap=False)

    def facts(self, facts: Mapping[str, object]) -> None:
        """Write names with their values."""
        self.table(("", ""), [(name.replace("_", " "), value) for name, value in facts.items()])

    def error(self, message: str, code: ExitCode) -> None:
        """Write why the command failed."""
        if self.is_json:
            sys.stderr.write(json.dumps({"error": message, "exit_code": int(code)}) + "\n")
        else:
            self.stderr.print(f"[bold red]fedagg:[/] {escape(message)}")
