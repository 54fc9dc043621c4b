"""What a suite measures, and how much of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from benchmarks.harness.figures import Figures

Measure: TypeAlias = Callable[[int], Iterable[Figures]]
"""Measures so many windows, rounds or calls; gives rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing to measure.

    Attributes:
        name: for people, and to choose it by.
        full: the measurement.
        quick: the same with small counts; None: a quick run leaves it out.
    """

    name: str
    full: Measure
    quick: Measure | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """Cases whose rows make one table.

    Attributes:
        cases: in the order of the rows.
        repeats: what a case is given unless people ask for another number.
        target: what is wanted, where a row does not tell itself.
        missing: tells why it cannot be measured here; empty where it can.
    """

    cases: Sequence[Case]
    repeats: int = 1
    target: str = ""
    missing: Callable[[], str] = field(default=lambda: "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Benchmarks that one command runs.

    Attributes:
        name: in names of kept reports.
        command: what people type: a target of `make`.
        benchmarks: by name.
        packages: whose versions figures depend on.
        describe: the rest of the command's help.
    """

    name: str
    command: str
    benchmarks: Mapping[str, Benchmark]
    packages: Sequence[str]
    describe: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What of a suite is run.

    Attributes:
        names: of benchmarks.
        case: a part of the names of the cases; empty: all.
        repeats: of each case; None: as the benchmark has it.
        is_quick: whether only that it runs is of interest.
    """

    names: Sequence[str]
    case: str = ""
    repeats: int | None = None
    is_quick: bool = False

    @property
    def is_whole(self) -> bool:
        """Tell whether every row of a table is measured in earnest."""
        return not (self.is_quick or self.case)

    def arguments(self, name: str) -> str:
        """Write what to add to the command to measure one benchmark again."""
        parts = [name]
        parts += [f"--case '{self.case}'"] if self.case else []
        parts += [f"--repeats {self.repeats}"] if self.repeats is not None else []
        parts += ["--quick"] if self.is_quick else []
        return " ".join(parts)


def measure(benchmark: Benchmark, settings: Settings) -> list[Figures]:
    """Run the chosen cases one after the other."""
    repeats = benchmark.repeats if settings.repeats is None else settings.repeats
    rows: list[Figures] = []
    for case in benchmark.cases:
        run = case.quick if settings.is_quick else case.full
        if settings.case in case.name and run is not None:
            rows += run(1 if settings.is_quick else repeats)
    return rows
