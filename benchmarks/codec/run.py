"""Measure encodings of real updates: `python -m benchmarks.codec.run [names] [--quick]`.

The figures are processor time on one thread.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from rich.console import Console

from benchmarks.codec import encodings, references
from benchmarks.codec.real_updates import RealUpdate, real_update
from benchmarks.secure.figures import Figures
from benchmarks.tables import cells, machine_with, markdown_of, table_of
from updates.stage import zstd_version

REPEATS: Final = 5

_WIDTH: Final = 200  # of text that no terminal shows

BENCHMARKS: Final[Mapping[str, Callable[..., list[Figures]]]] = {
    "references": references.measure,
    "encodings": encodings.measure,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen benchmarks and print what they found."""
    arguments = _parse(argv)
    torch.set_num_threads(1)
    update = real_update("perceptron" if arguments.quick else "convolutional")
    results = {
        name: BENCHMARKS[name](update, repeats=1 if arguments.quick else REPEATS)
        for name in arguments.names or BENCHMARKS
    }
    if arguments.format == "json":
        report = {"machine": _machine(), "quick": arguments.quick, "update": _about(update)}
        sys.stdout.write(json.dumps({**report, "results": results}, indent=2) + "\n")
    elif arguments.format == "markdown":
        for name, rows in results.items():
            sys.stdout.write(f"\n### {name}\n\n{markdown_of(cells(rows))}")
    else:
        console = Console(width=None if sys.stdout.isatty() else _WIDTH)
        console.print(f"[bold]{_about(update)}[/]")
        for name, rows in results.items():
            console.print(f"[bold]{name}[/]", table_of(cells(rows)))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codec.run", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="a small model: only that it runs")
    parser.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark named {unknown[0]}; there are {', '.join(BENCHMARKS)}")
    return arguments


def _about(update: RealUpdate) -> Figures:
    return {
        "model": update.model,
        "dim": len(update.delta),
        "dense_bytes": update.dense_bytes,
        "zeros": round(float((update.delta == 0).mean()), 4),
    }


def _machine() -> Figures:
    machine = machine_with("numpy", "torch", "zstandard", "flwr")
    return {**machine, "libzstd": zstd_version()}


if __name__ == "__main__":
    sys.exit(main())
