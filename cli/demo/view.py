"""What a person sees while a demonstration runs."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cli.demo.report import RoundReport, round_line


class DemoView:
    """One line per finished round; on a terminal, a bar with the present phase below them.

    Args:
        console: where to; None: nowhere.
        num_rounds: rounds there will be.
    """

    def __init__(self, console: Console | None, num_rounds: int) -> None:
        self._console = console
        self._num_rounds = num_rounds
        self._progress: Progress | None = None
        if console is not None and console.is_terminal:
            self._progress = Progress(
                BarColumn(bar_width=30),
                TextColumn("{task.completed:.0f}/{task.total:.0f} rounds"),
                TextColumn("[cyan]{task.description}"),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )
            self._bar = self._progress.add_task("starting", total=num_rounds)

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def say(self, text: str) -> None:
        """Write a line."""
        if self._console is not None:
            self._console.print(escape(text))

    def phase(self, text: str) -> None:
        """Show what happens now; only a terminal does."""
        if self._progress is not None:
            self._progress.update(self._bar, description=escape(text))

    def finished(self, one: RoundReport) -> None:
        """Show a finished round."""
        self.say(round_line(one, self._num_rounds))
        if self._progress is not None and one.decision == "published":
            self._progress.advance(self._bar)
