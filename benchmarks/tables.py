"""How benchmarks print what they found, and the machine it was found on."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import psutil
from rich.table import Table

from benchmarks.secure.figures import Figures


def text_of(value: object) -> str:
    """A figure as people read it."""
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if value >= 100 or isinstance(value, int) else f"{value:g}"


def cells(rows: Sequence[Figures]) -> list[list[str]]:
    """Heading and lines."""
    heading = [name.replace("_", " ") for name in rows[0]] if rows else []
    return [heading, *([text_of(value) for value in row.values()] for row in rows)]


def table_of(lines: Sequence[Sequence[str]], title: str | None = None) -> Table:
    """A heading and lines for a terminal."""
    heading, *others = lines
    table = Table(title=title)
    for number, name in enumerate(heading):
        table.add_column(name, justify="right" if number else "left")
    for line in others:
        table.add_row(*line)
    return table


def markdown_of(lines: Sequence[Sequence[str]]) -> str:
    """A heading and lines for a document."""
    heading, *others = lines
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (heading, rule, *others))


def machine_with(*packages: str) -> Figures:
    """What figures depend on: the machine, and versions of those packages that are installed."""
    return {
        "cpus": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: found for name in packages if (found := _version(name)) is not None},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
