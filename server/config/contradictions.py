"""Settings that contradict each other: rows of condition and message.

A row is told where its condition holds. It is not asked where a setting that it reads is wrong
itself. To add one: the setting that people should look at, the condition, and what is wrong in
words that go on after the setting's name; `{0}` is what the condition was asked about. The
rows of tasks stand in `task_contradictions`, `shared_contradictions` and `private_contradictions`,
those of processes in `process_contradictions`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from aggregators.errors import AggregationError
from aggregators.registry import traits_of
from aggregators.traits import Traits
from server.config.section import UnreadableSetting

if TYPE_CHECKING:
    from server.config.task_config import TaskConfig

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Contradiction(Generic[T]):
    """One row.

    Attributes:
        setting: that is told, as the file writes it within what is asked.
        when: the condition.
        message: `{0}` stands for what was asked, `{1}` for what the condition returned.
    """

    setting: str
    when: Callable[[T], object]
    message: str


def problems_of(rows: Iterable[Contradiction[T]], asked: T, where: str = "") -> list[str]:
    """Tell every row whose condition holds, each in one line.

    Args:
        rows: of the table.
        asked: the settings.
        where: their name, with a dot after it.
    """
    told = []
    for row in rows:
        try:
            found = row.when(asked)
            if found:
                told.append(f"{where}{row.setting}: {row.message.format(asked, found)}")
        except UnreadableSetting:
            continue
    return told


def rows_where(guard: Callable[[T], bool], *rows: Contradiction[T]) -> tuple[Contradiction[T], ...]:
    """Return rows that count only where `guard` holds."""

    def guarded(when: Callable[[T], object]) -> Callable[[T], object]:
        return lambda asked: guard(asked) and when(asked)

    return tuple(Contradiction(row.setting, guarded(row.when), row.message) for row in rows)


def rule_traits(task: "TaskConfig") -> Traits:
    """Read what the rule declares; of a rule that is not there nothing is judged."""
    try:
        return traits_of(task.aggregation.rule)
    except AggregationError as error:
        raise UnreadableSetting(task.aggregation.rule) from error
