"""Time aggregation rules beside other libraries, and beside reading the updates once.

`python -m benchmarks.kernels`; libraries that are not installed are left out.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeAlias

import psutil
from rich.console import Console
from rich.markup import escape

from benchmarks.harness.machine import Machine
from benchmarks.harness.tables import console, make_report
from benchmarks.kernels.machine import measure_matrix_product
from benchmarks.kernels.measure import Effort, Say, measure_size
from benchmarks.kernels.peers.registry import PEERS, PeerMissing, load_ways
from benchmarks.kernels.report import tables_of
from benchmarks.kernels.results import OURS, Comparison, LeftOut, Result, Size
from benchmarks.kernels.rules import LEAST_ROWS, RULES
from benchmarks.kernels.ways import Ways

Shape: TypeAlias = tuple[int, int]

_DEFAULT: Final[Shape] = (100, 1_000_000)
_ALL: Final[Sequence[Shape]] = (_DEFAULT, (20, 10_000_000), (1000, 100_000))
_PACKAGES: Final = ("fedagg", "numpy", "numba", "torch", "byzfl", "flwr")
_ROWS_SHARE: Final = 0.5  # of the memory that is available


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what was asked for and print it; progress goes to standard error."""
    arguments = _parse(argv)
    with _progress(console(to_stderr=True)) as say:
        found = _measure(arguments, say)
    command = shlex.join(["python", "-m", "benchmarks.kernels", *(argv or sys.argv[1:])])
    report = make_report(command, _PACKAGES, tables_of(found))
    if arguments.is_whole:
        report.keep("kernels-rules")
    match arguments.format:
        case "json":
            sys.stdout.write(json.dumps(found.as_json(), allow_nan=False) + "\n")
        case "markdown":
            sys.stdout.write(report.markdown())
        case _:
            report.print(console())
    return 0


def _measure(arguments: argparse.Namespace, say: Say) -> Comparison:
    ways, left_out = _load(arguments.peers)
    for one in left_out:
        say(f"{one.peer} is left out: {one.reason}")
    effort = Effort(
        repeats=arguments.repeats, budget_s=arguments.budget_s, limit_s=arguments.limit_s
    )
    sizes: list[Size] = []
    results: list[Result] = []
    for shape in arguments.shapes:
        found = measure_size(shape, arguments.rules, ways, effort, seed=arguments.seed, say=say)
        sizes.append(found[0])
        results += found[1]
        left_out += found[2]
    say("multiplying matrices")
    return Comparison(
        machine=Machine.here(_PACKAGES),
        settings={
            "rules": arguments.rules,
            "peers": list(ways),
            "repeats": arguments.repeats,
            "budget_s": arguments.budget_s,
            "limit_s": arguments.limit_s,
            "seed": arguments.seed,
        },
        matrix_product_gflops=measure_matrix_product(),
        sizes=sizes,
        results=results,
        left_out=left_out,
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    add = parser.add_argument
    add("--n", type=int, help="updates; 100 unless given")
    add("--d", type=int, help="values of each; 1000000 unless given")
    add(
        "--all",
        action="store_true",
        help=f"without --n and --d: {', '.join(f'{n:,} x {d:,}' for n, d in _ALL)}",
    )
    add("--rules", default=",".join(RULES), help=f"with commas between; of {', '.join(RULES)}")
    add("--peers", default=",".join(PEERS), help=f"with commas between; of {', '.join(PEERS)}")
    add("--repeats", type=int, default=7, help="calls timed of each; the median counts")
    add("--budget-s", type=float, default=10.0, help="seconds of calls of each, at least one call")
    add("--limit-s", type=float, default=60.0, help="leave out what takes longer for one call")
    add("--seed", type=int, default=0, help="of the updates drawn")
    add("--format", choices=("table", "json", "markdown"), default="table")
    arguments = parser.parse_args(argv)
    least = {"n": LEAST_ROWS, "d": 1, "repeats": 1, "budget_s": 0, "limit_s": 0, "seed": 0}
    for name, bound in least.items():
        value = getattr(arguments, name)
        if value is not None and not value >= bound:
            parser.error(f"--{name.replace('_', '-')}={value} must be {bound} or more")
    usual = parser.parse_args(["--all"])
    what = ("all", "n", "d", "rules", "peers")
    arguments.is_whole = all(getattr(arguments, name) == getattr(usual, name) for name in what)
    arguments.shapes = _shapes(parser, arguments.n, arguments.d, arguments.all)
    arguments.rules = _chosen(parser, "--rules", arguments.rules, tuple(RULES))
    if not arguments.rules:
        parser.error(f"--rules must name at least one of {', '.join(RULES)}")
    arguments.peers = _chosen(parser, "--peers", arguments.peers, PEERS)
    return arguments


def _shapes(
    parser: argparse.ArgumentParser, num_rows: int | None, dim: int | None, all_sizes: bool
) -> Sequence[Shape]:
    one = (_DEFAULT[0] if num_rows is None else num_rows, _DEFAULT[1] if dim is None else dim)
    shapes = _ALL if all_sizes and num_rows is None and dim is None else (one,)
    available = psutil.virtual_memory().available
    for rows, columns in shapes:
        if 4 * rows * columns > _ROWS_SHARE * available:
            message = f"--n={rows} updates of --d={columns} values are {4e-9 * rows * columns:.1f}"
            message += f" GB, more than half of the {available / 1e9:.1f} GB that are available"
            parser.error(message)
    return shapes


def _chosen(
    parser: argparse.ArgumentParser, option: str, text: str, known: Sequence[str]
) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in known and name != OURS]
    if unknown:
        parser.error(f"{option}={unknown[0]} is unknown; there are {', '.join(known)}")
    return [name for name in names if name != OURS]


def _load(peers: Sequence[str]) -> tuple[dict[str, Ways], list[LeftOut]]:
    ways: dict[str, Ways] = {}
    missing: list[LeftOut] = []
    for peer in peers:
        try:
            ways[peer] = load_ways(peer)
        except PeerMissing as reason:
            missing.append(LeftOut(peer=peer, reason=str(reason)))
    return ways, missing


@contextmanager
def _progress(console: Console) -> Iterator[Say]:
    """Tell what is being measured: on one line of a terminal, else line by line."""
    if not console.is_terminal:
        yield lambda text: console.print(escape(text))
        return
    with console.status("starting") as status:
        yield lambda text: status.update(escape(text))


if __name__ == "__main__":
    sys.exit(main())
