"""Every rule on a GPU against the same rule in this process: `python -m benchmarks.cuda_rows`.

Compares bits, measures seconds, and fails where a bit differs. Skips, with status 0, where torch
finds no CUDA device. Needs numpy, torch and numba, nothing else.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators.config import AggregatorConfig
from aggregators.engines.engine import LOCAL, Engine, make_engine
from aggregators.engines.engine_options import EngineOptions
from aggregators.errors import AggregationError
from aggregators.pipeline import make_rule
from aggregators.registry import RULES
from aggregators.rule import Context, Rule, RuleResult

PIPELINES: Final = (
    "nnm+trimmed-mean",
    "nnm+geometric-median",
    "arc+nnm+median",
    "clip+mean",
    "bucketing+geometric-median",
)
FEW_UPDATES: Final = 12
MANY_UPDATES: Final = 100
NUM_BYZANTINE: Final = 2
REPEATS: Final = 3

_HARD_DIM: Final = 3 * 4096 + 21
_EDGES: Final = (0.0, -0.0, 1e-45, -3e-39, 1.0, 1.0 + 2.0**-23, -1.0, 1e30, -3e38, 3.4028235e38)

Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """One rule on one matrix.

    Attributes:
        rows: name of the matrix.
        n: updates.
        d: numbers of each.
        agrees: whether vector, weights and scores have the same bits.
        differing: coordinates of the vector that differ.
        local_s: least seconds of the kernels.
        cuda_s: least seconds of the device, the way to it included.
    """

    rule: str
    rows: str
    n: int
    d: int
    agrees: bool
    differing: int
    local_s: float
    cuda_s: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare all rules; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_rows", description=__doc__)
    parser.add_argument("--d", type=int, default=1_000_000, help="numbers of an update")
    parser.add_argument("--n", type=int, default=MANY_UPDATES, help="updates, from 17")
    parser.add_argument("--device", default="cuda", help="as torch names it; cpu tries this out")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args(arguments)
    problem = _missing(options.device)
    if problem:
        _say(json.dumps({"skipped": problem}) if options.format == "json" else problem)
        return 0
    engine = make_engine("torch", EngineOptions(torch_device=options.device))
    agreements = []
    if options.format == "table":
        _say(_line("rule", "updates", "n", "d", "same bits", "differ", "local s", "torch s"))
    for found in compare(engine, num_updates=options.n, dim=options.d):
        agreements.append(found)
        if options.format == "table":
            _say(_text(found))
    report = _report(options.device, agreements)
    if options.format == "json":
        _say(json.dumps(report, indent=2))
    else:
        command = f"python -m benchmarks.cuda_rows --n {options.n} --d {options.d}"
        _say(f"{command}, {report['date']}. {report['device']}, torch {report['torch']}.")
    bad = [found.rule for found in agreements if not found.agrees]
    if bad:
        sys.stderr.write(f"{len(bad)} of {len(agreements)} differ: {', '.join(bad)}\n")
    return 1 if bad else 0


def compare(
    engine: Engine,
    *,
    num_updates: int,
    dim: int,
    names: Sequence[str] = (*RULES, *PIPELINES),
) -> Iterator[Agreement]:
    """Run rules on updates as they are, and on such as rounding has the least mercy with."""
    for name in names:
        rule = make_rule(AggregatorConfig(rule=name, num_malicious_nodes=NUM_BYZANTINE))
        for rows, matrix in (
            ("plain", _plain(num_updates, dim)),
            ("few", _plain(FEW_UPDATES, dim)),
            ("hard", _hard(num_updates)),
            ("few hard", _hard(FEW_UPDATES)),
        ):
            yield _compared(name, rule, rows, matrix, engine)


def _compared(name: str, rule: Rule, rows: str, matrix: Matrix, engine: Engine) -> Agreement:
    context = _context(matrix)
    repeats = REPEATS if rows == "plain" else 1
    expected, local_s = _run(rule, matrix, context, LOCAL, repeats)
    found, cuda_s = _run(rule, matrix, context, engine, repeats)
    agrees, differing = expected == found, 0
    if isinstance(expected, RuleResult) and isinstance(found, RuleResult):
        bits = expected.vector.view(np.uint32) != found.vector.view(np.uint32)
        agrees, differing = _bytes(expected) == _bytes(found), int(np.count_nonzero(bits))
    return Agreement(
        rule=name,
        rows=rows,
        n=matrix.shape[0],
        d=matrix.shape[1],
        agrees=agrees,
        differing=differing,
        local_s=local_s,
        cuda_s=cuda_s,
    )


def _run(
    rule: Rule, matrix: Matrix, context: Context, engine: Engine, repeats: int
) -> tuple[RuleResult | str, float]:
    """The result, or why there is none, and the least seconds it took."""
    result: RuleResult | str = ""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        try:
            result = rule(engine.rows(list(matrix)), context)
        except AggregationError as error:
            result = str(error)
        seconds.append(time.perf_counter() - started)
    return result, min(seconds)


def _bytes(result: RuleResult) -> tuple[bytes, ...]:
    scores = b"" if result.scores is None else result.scores.tobytes()
    return result.vector.tobytes(), result.weights.tobytes(), scores


def _plain(num_updates: int, dim: int) -> Matrix:
    """Updates around a common direction, two of them far away."""
    generator = np.random.default_rng(1)
    rows = generator.standard_normal((num_updates, dim), dtype=np.float32)
    rows += generator.standard_normal(dim, dtype=np.float32)
    rows[:NUM_BYZANTINE] *= np.float32(1000)
    return rows


def _hard(num_updates: int) -> Matrix:
    """Columns that cancel, tie, or hold the ends of float32, and rows that are nearly equal."""
    generator = np.random.default_rng(2)
    rows = generator.standard_normal((num_updates, _HARD_DIM)).astype(np.float32)
    half = num_updates // 2
    rows[half : 2 * half, ::3] = -rows[:half, ::3]
    rows[:, 1::5] = generator.choice(np.array([-1.0, -0.0, 0.0, 0.5]), rows[:, 1::5].shape)
    rows[:, 2::97] = generator.choice(np.array(_EDGES), rows[:, 2::97].shape)
    rows[3] = rows[2]
    rows[4] = rows[2] * np.float32(1.0 - 2.0**-20)
    return rows


def _context(matrix: Matrix) -> Context:
    """Tell a rule everything it could ask for."""
    generator = np.random.default_rng(3)
    num_updates, dim = len(matrix), len(matrix[0])
    return Context(
        weights=generator.integers(1, 1000, num_updates).astype(np.float64),
        trust=generator.random((num_updates,)),
        root_update=generator.standard_normal((dim,)).astype(np.float32),
        center=generator.standard_normal((dim,)).astype(np.float32),
        probe_outputs=generator.standard_normal((num_updates, 6, 4)),
        keys=tuple(f"device-{row:04}" for row in range(num_updates)),
        seed=5,
    )


def _missing(device: str) -> str:
    """Why there is nothing to compare; empty: there is."""
    has_torch = find_spec("torch") is not None
    if device.startswith("cuda") and not (has_torch and import_module("torch").cuda.is_available()):
        return "skipped: no CUDA device"
    return "" if has_torch else "skipped: torch is not installed"


def _report(device: str, agreements: Sequence[Agreement]) -> dict[str, object]:
    torch = import_module("torch")
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return {
        "device": name,
        "torch": torch.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "agreements": [asdict(found) for found in agreements],
    }


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _text(found: Agreement) -> str:
    return _line(
        found.rule,
        found.rows,
        str(found.n),
        str(found.d),
        "yes" if found.agrees else "NO",
        str(found.differing),
        f"{found.local_s:.4f}",
        f"{found.cuda_s:.4f}",
    )


def _line(*cells: str) -> str:
    widths = (26, 8, 5, 9, 9, 8, 9, 9)
    first, *others = (
        cell.ljust(width) if at < 2 else cell.rjust(width)
        for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return " ".join([first, *others])


if __name__ == "__main__":
    sys.exit(main())
