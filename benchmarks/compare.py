"""Compare the throughput of two commits in one run: `python -m benchmarks.compare OLD NEW`.

Each is a commit, which is checked out and set up in a temporary folder (a minute or two), or a
folder that is set up already. Every tree measures itself with its own benchmark, interpreter and
libraries; runs of the two alternate, and each ratio is taken within one pair of neighbouring runs,
so that what else the machine does meets both alike.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.harness.figures import Figures, rounded
from benchmarks.harness.processes import ROOT
from benchmarks.harness.tables import Table, console, make_report
from benchmarks.service.throughput import TRAFFIC

_INTERPRETER: Final = Path(".venv/bin/python")

Row = dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both and print the ratios of new to old."""
    arguments = _parse(argv)
    say = console(to_stderr=True)
    rows: list[Figures] = []
    with _tree(arguments.old) as old, _tree(arguments.new) as new:
        for name in [one.name for one in TRAFFIC if arguments.case in one.name]:
            pairs = []
            for number in range(arguments.pairs):
                say.print(f"{name}: pair {number + 1} of {arguments.pairs}")
                pairs.append(_pair(old, new, name, arguments.windows, is_turned=number % 2 == 1))
            rows.append(compared(name, pairs))
    command = f"python -m benchmarks.compare {arguments.old} {arguments.new}"
    command += f" --case '{arguments.case}'" if arguments.case else ""
    command += f" --pairs {arguments.pairs} --windows {arguments.windows}"
    make_report(command, ("grpcio",), [Table.of(rows)]).print(console())
    return 0


def compared(case: str, pairs: Sequence[tuple[Row, Row]]) -> Figures:
    """Make a row of runs of the old tree and the new one."""
    ratios = [new["updates_per_s"] / old["updates_per_s"] for old, new in pairs]
    beside_echo = [new["ratio"] / old["ratio"] for old, new in pairs]
    cpu = [_cpu_us(new) / _cpu_us(old) for old, new in pairs]
    return {
        "case": case,
        "old_per_s": rounded(statistics.median(old["updates_per_s"] for old, _ in pairs)),
        "new_per_s": rounded(statistics.median(new["updates_per_s"] for _, new in pairs)),
        "least_ratio": rounded(min(ratios)),
        "median_ratio": rounded(statistics.median(ratios)),
        "largest_ratio": rounded(max(ratios)),
        "beside_echo": rounded(statistics.median(beside_echo)),
        "cpu_ratio": rounded(statistics.median(cpu)),
        "pairs": f"{len(pairs)}",
    }


def _cpu_us(row: Row) -> float:
    return row["cpu_us"] + row["store_cpu_us"]


def _pair(old: Path, new: Path, case: str, windows: int, *, is_turned: bool) -> tuple[Row, Row]:
    """Run both, one after the other; the one that goes first changes from pair to pair."""
    if is_turned:
        later, earlier = _run(new, case, windows), _run(old, case, windows)
        return earlier, later
    return _run(old, case, windows), _run(new, case, windows)


def _run(tree: Path, case: str, windows: int) -> Row:
    # Where the benchmark was before it had a room.
    module = "benchmarks.run" if (tree / "benchmarks" / "run.py").exists() else "benchmarks.service"
    command = [str(tree / _INTERPRETER), "-m", module, "throughput", "--case", case]
    command += ["--windows", str(windows), "--format", "json"]
    done = subprocess.run(  # noqa: S603  # our own command
        command, cwd=tree, env=_environment(), stdout=subprocess.PIPE, check=True
    )
    (row,) = json.loads(done.stdout)["results"]["throughput"]
    return {name: value for name, value in row.items() if isinstance(value, int | float)}


@contextlib.contextmanager
def _tree(name: str) -> Iterator[Path]:
    """Use a folder that is set up, or set a commit up for as long as the block."""
    if (Path(name) / _INTERPRETER).exists():
        yield Path(name).absolute()
        return
    with tempfile.TemporaryDirectory(prefix="fedagg-compare-") as parent:
        tree = Path(parent) / "tree"
        _git("worktree", "add", "--detach", "--quiet", str(tree), name)
        try:
            subprocess.run(  # noqa: S603  # of our own tree
                ["make", "--directory", str(tree), ".venv/.runtime"],  # noqa: S607
                env=_environment(),
                stdout=sys.stderr,
                check=True,
            )
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=ROOT, check=True)  # noqa: S603, S607


def _environment() -> dict[str, str]:
    """Drop what would keep bytecode from being written, or name another environment."""
    dropped = {"PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "PYTHONPATH"}
    return {name: value for name, value in os.environ.items() if name not in dropped}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("old", help="a commit, or a folder that is set up")
    parser.add_argument("new", help="the same")
    parser.add_argument("--case", default="", help="only cases with this in their name")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each, in turn")
    parser.add_argument("--windows", type=int, default=2, help="windows of a run")
    arguments = parser.parse_args(argv)
    for name in ("pairs", "windows"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}={getattr(arguments, name)} must be at least 1")
    if not any(arguments.case in one.name for one in TRAFFIC):
        parser.error(f"no case is named {arguments.case}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
