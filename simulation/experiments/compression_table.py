"""What compression costs in accuracy: `python -m simulation.experiments.compression_table`.

Trains one small model for every method, share of numbers and mode, and prints a table. The seeds
are 0 to one below their number; test accuracy is that after the last round, in percent. See
`simulation.experiments.compressed_training` for what is trained.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeAlias

from simulation.data import datasets
from simulation.experiments import batched_training
from simulation.experiments.compressed_training import SETTINGS, Case, Task, train
from updates.compression_plan import Method, ValueType

RATIOS: Final = (0.01, 0.1)
REFUSED: Final = "refused"  # of chosen coordinates in shared mode, as the server's settings do

Figures: TypeAlias = dict[str, str | float]

_MEASURED: Final = ("accuracy_%", "deviation", "against_dense", "update_bytes", "times_smaller")
_SETTING: Final = "device"
_QUICK_ROUNDS: Final = 3


def cases(value_type: ValueType) -> Iterator[tuple[Method, float, bool, Case | None]]:
    """Give the rows: dense first, then every method at every ratio; None where it is refused."""
    dense = Case(method=Method.DENSE)
    for shared in (False, True):
        yield Method.DENSE, 1.0, shared, replace(dense, shared=shared)
    for ratio in RATIOS:
        for method in Method:
            if method is Method.DENSE:
                continue
            plain = Case(method=method, ratio=ratio, value_type=value_type)
            yield method, ratio, False, plain
            is_refused = method is Method.TOP_K
            yield method, ratio, True, None if is_refused else replace(plain, shared=True)


def table(
    task: Task, seeds: Sequence[int], value_type: ValueType, report: Callable[[Figures], object]
) -> list[Figures]:
    """Train every case with every seed.

    Args:
        task: what is trained.
        seeds: one run of each case for each.
        value_type: how numbers are written in plain mode.
        report: gets each row as soon as it is known.

    Returns:
        The rows: mean accuracy, its standard deviation over the seeds, points above dense updates
        of the same mode, mean bytes of an update, and how many times smaller than dense they are.
    """
    rows: list[Figures] = []
    dense: dict[str, tuple[float, float]] = {}
    for method, ratio, shared, case in cases(value_type):
        mode = "shared" if shared else "plain"
        row: Figures = {"method": method.value, "ratio": ratio, "mode": mode}
        if case is None:
            row |= dict.fromkeys(_MEASURED, REFUSED)
        else:
            runs = [train(task, case, seed) for seed in seeds]
            scores = [100 * run.accuracy for run in runs]
            mean, size = statistics.fmean(scores), statistics.fmean(r.update_bytes for r in runs)
            best, largest = dense.setdefault(mode, (mean, size))
            measured = (mean, statistics.pstdev(scores), mean - best, size, largest / size)
            row |= {name: round(value, 2) for name, value in zip(_MEASURED, measured, strict=True)}
        rows.append(row)
        report(row)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table on standard output, and its rows as they come on standard error."""
    arguments = _parse(argv)
    quick = arguments.quick
    task = Task(
        dataset=arguments.dataset,
        setting=arguments.setting,
        rounds=min(arguments.rounds, _QUICK_ROUNDS) if quick else arguments.rounds,
        clipping_norm=arguments.clipping_norm,
        shared_clipping_norm=arguments.shared_clipping_norm,
        residual_decay=arguments.residual_decay,
        data_dir=arguments.data_dir,
    )
    seeds = range(1 if quick else arguments.seeds)
    terms: Figures = {
        "dataset": task.dataset,
        "parameters": batched_training.dimension(task.sizes),
        "setting": "{1} of {0} devices a round".format(*SETTINGS[task.setting]),
        "rounds": task.rounds,
        "seeds": len(seeds),
        "value_type": arguments.value_type,
        "clipping_norm": task.clipping_norm,
        "shared_clipping_norm": task.shared_clipping_norm,
        "residual_decay": task.residual_decay,
    }
    kind = ValueType(arguments.value_type)
    rows = table(task, seeds, kind, lambda row: sys.stderr.write(f"{_line(row)}\n"))
    sys.stdout.write(_FORMATS[arguments.format](terms, rows))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    prog = "python -m simulation.experiments.compression_table"
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("--dataset", choices=sorted(datasets.DATASETS), default="digits")
    parser.add_argument("--data-dir", type=Path, help="where the data set lies")
    parser.add_argument("--setting", choices=sorted(SETTINGS), default=_SETTING)
    parser.add_argument("--rounds", type=_positive, default=500)
    parser.add_argument("--seeds", type=_positive, default=3, help="runs of each case")
    parser.add_argument(
        "--value-type",
        choices=[kind.value for kind in ValueType],
        default=ValueType.FLOAT16.value,
        help="how numbers are written in plain mode",
    )
    norm, shared, decay = "--clipping-norm", "--shared-clipping-norm", "--residual-decay"
    parser.add_argument(norm, type=float, default=0.0, help="in plain mode; 0: not clipped")
    parser.add_argument(shared, type=_above_zero, default=2.0, help="in shared mode")
    parser.add_argument(decay, type=_above_zero, default=1.0, help="for each round missed")
    parser.add_argument("--format", choices=sorted(_FORMATS), default="text")
    parser.add_argument("--quick", action="store_true", help="few rounds: only that it runs")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        message = f"{value} must be at least 1"
        raise argparse.ArgumentTypeError(message)
    return value


def _above_zero(text: str) -> float:
    value = float(text)
    if not value > 0:
        message = f"{value} must be above 0"
        raise argparse.ArgumentTypeError(message)
    return value


def _line(row: Figures) -> str:
    return " ".join(_text(value) for value in row.values())


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:,.7g}"


def _as_json(terms: Figures, rows: Sequence[Figures]) -> str:
    return json.dumps({**terms, "rows": list(rows)}, indent=2) + "\n"


def _as_markdown(terms: Figures, rows: Sequence[Figures]) -> str:
    heading = [name.replace("_", " ") for name in rows[0]]
    rule = ["---", *["---:"] * (len(heading) - 1)]
    lines = [heading, rule, *([_text(value) for value in row.values()] for row in rows)]
    return _about(terms) + "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _as_text(terms: Figures, rows: Sequence[Figures]) -> str:
    heading = [name.replace("_", " ") for name in rows[0]]
    lines = [heading, *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return _about(terms) + "".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + "\n"
        for line in lines
    )


def _about(terms: Figures) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_text(v)}" for name, v in terms.items()) + "\n"


_FORMATS: Final[Mapping[str, Callable[[Figures, Sequence[Figures]], str]]] = {
    "json": _as_json,
    "markdown": _as_markdown,
    "text": _as_text,
}


if __name__ == "__main__":
    sys.exit(main())
