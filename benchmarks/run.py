"""Measure the service on this machine: `python -m benchmarks.run [names] [--quick]`.

Starts a coordinator and an embedded store for each benchmark, on loopback and a temporary folder,
with durability on, and loads them from processes of their own.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from rich.console import Console

from benchmarks import scenarios, throughput
from benchmarks.figures import MIB
from benchmarks.tables import cells, machine_with, markdown_of, table_of, text_of

WINDOWS: Final = 5
TARGETS: Final[Mapping[str, str]] = {
    "throughput": "ratio to echo: unary >= 0.6, chunked >= 0.7; batched >= 10,000 updates/s",
    "connections": "1,000 connections without an error",
    "burst": "peak RSS under 300 MB",
    "rounds": "coordinator CPU under 0.4 s a round",
    "check-ins": "p99 under 10 ms while Multi-Krum runs",
}

Figures: TypeAlias = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much is measured."""

    quick: bool
    windows: int
    cases: Sequence[throughput.Case]


def run_throughput(settings: Settings) -> list[Figures]:
    """Updates per second by path and size."""
    return [
        dataclasses.asdict(row)
        for row in throughput.measure(settings.cases, windows=settings.windows)
    ]


def run_connections(settings: Settings) -> list[Figures]:
    """Many connected devices."""
    count, seconds = (100, 2.0) if settings.quick else (1000, 20.0)
    found = scenarios.connections(count=count, rate_per_s=count / 2, seconds=seconds)
    return [dataclasses.asdict(found)]


def run_burst(settings: Settings) -> list[Figures]:
    """Large uploads at once."""
    uploads, size = (10, 4 * MIB) if settings.quick else (100, 40 * MIB)
    return [dataclasses.asdict(scenarios.burst(uploads=uploads, payload_bytes=size))]


def run_rounds(settings: Settings) -> list[Figures]:
    """What a round costs."""
    clients, size, count = (5, MIB, 2) if settings.quick else (20, 4 * MIB, 10)
    found = scenarios.rounds(clients=clients, payload_bytes=size, count=count)
    return [dataclasses.asdict(found)]


def run_check_ins(settings: Settings) -> list[Figures]:
    """Check-ins beside an aggregation."""
    updates, dim, count = (10, 100_000, 1) if settings.quick else (100, 1_000_000, 5)
    found = scenarios.check_ins(updates=updates, dim=dim, aggregations=count, rate_per_s=200)
    return [dataclasses.asdict(found)]


BENCHMARKS: Final[Mapping[str, Callable[[Settings], list[Figures]]]] = {
    "throughput": run_throughput,
    "connections": run_connections,
    "burst": run_burst,
    "rounds": run_rounds,
    "check-ins": run_check_ins,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen benchmarks and print what they found."""
    arguments = _parse(argv)
    cases = [case for case in throughput.CASES if arguments.case in case.name]
    settings = Settings(
        quick=arguments.quick,
        windows=1 if arguments.quick else arguments.windows,
        cases=[throughput.quick(case) for case in cases] if arguments.quick else cases,
    )
    console = Console(stderr=arguments.format != "text")
    results: dict[str, list[Figures]] = {}
    for name in arguments.names or BENCHMARKS:
        console.print(f"[bold]{name}[/] (target: {TARGETS[name]})")
        results[name] = BENCHMARKS[name](settings)
        if arguments.format == "text":
            console.print(table_of(_cells(results[name])))
        elif arguments.format == "markdown":
            sys.stdout.write(f"\n### {name}\n\n{markdown_of(_cells(results[name]))}")
    if arguments.format == "json":
        report = {"machine": machine_with("grpcio"), "quick": arguments.quick, "results": results}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="small counts: only that it runs")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="pairs of windows per case")
    parser.add_argument("--case", default="", help="throughput: only cases with this in their name")
    parser.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark named {unknown[0]}; there are {', '.join(BENCHMARKS)}")
    if arguments.windows < 1:
        parser.error(f"--windows={arguments.windows} must be at least 1")
    return arguments


def _cells(rows: Sequence[Figures]) -> list[list[str]]:
    """Heading and lines: one per measurement if there are several, one per figure if one."""
    if len(rows) == 1:
        pairs = [[name.replace("_", " "), text_of(value)] for name, value in rows[0].items()]
        return [["figure", "value"], *pairs]
    return cells(rows)


if __name__ == "__main__":
    sys.exit(main())
