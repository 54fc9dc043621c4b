"""Options that would do nothing or cannot work are refused, each in a line that names it.

The tables have the rows of `server.config.contradictions`: a row's setting is an option without its
dashes.
"""

from collections.abc import Iterable
from typing import TypeVar

from cli.exit_codes import CliError, ExitCode
from server.config.contradictions import Contradiction, problems_of

T = TypeVar("T")


class OptionsError(CliError):
    """Options that contradict each other; `problems` has a line for each contradiction."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems), exit_code=ExitCode.USAGE)


def refuse(rows: Iterable[Contradiction[T]], options: T) -> None:
    """Refuse options that a table finds fault with.

    Raises:
        OptionsError: with a problem for each row whose condition holds.
    """
    problems = problems_of(rows, options, "--")
    if problems:
        raise OptionsError(problems)
