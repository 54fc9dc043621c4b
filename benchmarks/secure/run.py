"""Measure shared rounds beside plain ones: `python -m benchmarks.secure.run [names] [--quick]`.

The environment is that of a coordinator: its memory allocator, and one thread for matrix products.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table

from benchmarks.peers import PEERS_PYTHON
from benchmarks.secure import against_flower, round_end, server_cost, share_generation
from benchmarks.secure.figures import NO_TARGET, Figures
from benchmarks.tables import cells, machine_with, markdown_of, table_of
from server.processes.supervisor import worker_environment

MILLION: Final = 1_000_000
REPEATS: Final = 5

_WIDTH: Final = 180  # of text that no terminal shows


def run_sharing(*, quick: bool) -> list[Figures]:
    """What a device pays."""
    dims = (1_000,) if quick else (1_000, 100_000, MILLION, 10 * MILLION)
    repeats = 1 if quick else REPEATS
    return share_generation.measure(share_generation.Settings(dims=dims, repeats=repeats))


def run_servers(*, quick: bool) -> list[Figures]:
    """What an upload costs coordinator and holders."""
    if quick:
        cases = (server_cost.Case(dim=1_000, uploads=4),)
        return server_cost.measure(server_cost.Settings(cases=cases, rounds=1))
    return server_cost.measure(server_cost.Settings(cases=server_cost.CASES, rounds=3))


def run_round_end(*, quick: bool) -> list[Figures]:
    """What happens once a round."""
    settings = (
        round_end.Settings(sum_dims=(1_000,), members=10, dim=1_000, distinct=3, repeats=1)
        if quick
        else round_end.Settings(
            sum_dims=(MILLION, 10 * MILLION), members=100, dim=MILLION, distinct=20, repeats=3
        )
    )
    return round_end.measure(settings)


def run_flower(*, quick: bool) -> list[Figures]:
    """Whole rounds beside SecAgg+."""
    cases = (against_flower.Case(clients=5, dim=1_000),) if quick else against_flower.CASES
    return against_flower.measure(against_flower.Settings(cases=cases, rounds=1 if quick else 3))


BENCHMARKS: Final[Mapping[str, Callable[..., list[Figures]]]] = {
    "sharing": run_sharing,
    "servers": run_servers,
    "round-end": run_round_end,
    "flower": run_flower,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen benchmarks and print what they found."""
    arguments = _parse(argv)
    width = None if sys.stdout.isatty() else _WIDTH
    console = Console(stderr=arguments.format != "text", width=width)
    results: dict[str, list[Figures]] = {}
    for name in arguments.names or BENCHMARKS:
        if name == "flower" and not PEERS_PYTHON.exists():
            console.print("flower is left out: it is not installed, `make peers` does that")
            continue
        console.print(f"[bold]{name}[/]")
        results[name] = BENCHMARKS[name](quick=arguments.quick)
        if arguments.format == "text":
            console.print(_table(results[name]))
            console.print(_targets(results[name]))
        elif arguments.format == "markdown":
            sys.stdout.write(f"\n### {name}\n\n{markdown_of(cells(results[name]))}")
    if arguments.format == "json":
        report = {"machine": _machine(), "quick": arguments.quick, "results": results}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.secure.run", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="small counts: only that it runs")
    parser.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark named {unknown[0]}; there are {', '.join(BENCHMARKS)}")
    return arguments


def _table(rows: Sequence[Figures]) -> Table:
    """All columns but the targets, which would leave no room for the figures."""
    return table_of(cells([{k: v for k, v in row.items() if k != "target"} for row in rows]))


def _targets(rows: Sequence[Figures]) -> str:
    """Each target once, with the numbers of its rows."""
    numbers: dict[str, list[str]] = {}
    for number, row in enumerate(rows, start=1):
        if row["target"] != NO_TARGET:
            numbers.setdefault(str(row["target"]), []).append(str(number))
    return "\n".join(f"rows {', '.join(of)}: {target}" for target, of in numbers.items())


def _machine() -> Figures:
    return machine_with("grpcio", "cryptography", "numpy", "numba")


def _in_worker_environment() -> None:
    """Start again, once, where variables are missing that count only when a process starts."""
    missing = worker_environment()
    if missing:
        command = [sys.executable, "-m", "benchmarks.secure.run", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **missing})  # noqa: S606  # ourselves


if __name__ == "__main__":
    _in_worker_environment()
    sys.exit(main())
