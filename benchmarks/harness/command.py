"""The command line of a suite: what it is asked, how it answers."""

import argparse
import json
import sys
from collections.abc import Sequence

from benchmarks.harness.cases import Settings, Suite, measure
from benchmarks.harness.figures import Figures
from benchmarks.harness.tables import Table, console, make_report


def run_suite(suite: Suite, argv: Sequence[str] | None = None) -> int:
    """Run the chosen benchmarks and print what they found; whole tables are kept as well."""
    arguments = _parse(suite, argv)
    settings = Settings(
        names=arguments.names or list(suite.benchmarks),
        case=arguments.case,
        repeats=arguments.repeats,
        is_quick=arguments.quick,
    )
    say = console(to_stderr=arguments.format != "text")
    answer: dict[str, object] = {"quick": settings.is_quick}
    results: dict[str, list[Figures]] = {}
    for name in settings.names:
        benchmark = suite.benchmarks[name]
        if missing := benchmark.missing():
            say.print(f"{name} is left out: {missing}")
            continue
        say.print(f"[bold]{name}[/]")
        results[name] = measure(benchmark, settings)
        report = make_report(
            f'make {suite.command} ARGS="{settings.arguments(name)}"',
            suite.packages,
            [Table.of(results[name], target=benchmark.target)],
        )
        answer |= {"date": report.date, "machine": report.machine}
        if settings.is_whole:
            report.keep(f"{suite.name}-{name}")
        if arguments.format == "text":
            report.print(say)
        elif arguments.format == "markdown":
            sys.stdout.write(f"\n### {name}\n\n{report.markdown()}")
    if arguments.format == "json":
        sys.stdout.write(json.dumps({**answer, "results": results}, indent=2) + "\n")
    return 0


def _parse(suite: Suite, argv: Sequence[str] | None) -> argparse.Namespace:
    known = ", ".join(suite.benchmarks)
    parser = argparse.ArgumentParser(
        prog=f"make {suite.command}",
        usage=f'make {suite.command} ARGS="[name ..] [options]"',
        description=suite.describe,
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {known}")
    parser.add_argument("--quick", action="store_true", help="small counts: only that it runs")
    parser.add_argument("--case", default="", help="only cases with this in their name")
    parser.add_argument(
        "--repeats", "--windows", type=int, help="windows, rounds or calls of each case"
    )
    parser.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.names) - set(suite.benchmarks))
    if unknown:
        parser.error(f"no benchmark named {unknown[0]}; there are {known}")
    if arguments.repeats is not None and arguments.repeats < 1:
        parser.error(f"--repeats={arguments.repeats} must be at least 1")
    return arguments
