"""What everything costs together: `python -m benchmarks.pipeline [--quick]`.

The same devices train the same model with plain averaging and with parts of the pipeline, all the
way to everything: shares, compression, differential privacy, Multi-Krum. Real processes, a real
store; the runs take turns, so that what else the machine does meets them alike. The time of a
round is that between its opening and its end, as the store's clock has it, training included.
"""

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

from rich.console import Console

from benchmarks.secure.figures import Figures
from benchmarks.tables import cells, table_of
from cli.demo.report import DemoReport
from cli.demo.run import Demo, DemoPlace
from cli.demo.settings import DemoSettings, SharedSettings
from cli.demo.terms import CompressionTerms, ToldPrivacy
from cli.demo.view import DemoView
from cli.guardian import Guardian
from simulation.fleet.scenarios import Scenario
from simulation.models import LAYER_SIZES

OVERHEAD_TARGET: Final = 0.5
PLAIN: Final = "plain FedAvg"
EVERYTHING: Final = "everything"

_ATTACKERS: Final = 4
_WIDTH: Final = 140  # of text that no terminal shows
_PROJECTION: Final = CompressionTerms(method="projection", ratio=0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is run.

    Attributes:
        scenario: devices, data, training.
        repeats: runs of each case.
        data_dir: where the data set lies, as in `datasets.load`.
    """

    scenario: Scenario
    repeats: int
    data_dir: Path | None


def cases(scenario: Scenario) -> Mapping[str, DemoSettings]:
    """Each case adds to the one before."""
    attacked = replace(scenario, attack="sign-flip", num_attackers=_ATTACKERS)
    return {
        PLAIN: DemoSettings(scenario=scenario),
        "projection 10 %": DemoSettings(scenario=scenario, compression=_PROJECTION),
        "projection, DP": DemoSettings(
            scenario=scenario, compression=_PROJECTION, privacy=ToldPrivacy()
        ),
        "shared, projection, DP": DemoSettings(
            scenario=scenario,
            compression=_PROJECTION,
            privacy=ToldPrivacy(),
            shared=SharedSettings(),
        ),
        EVERYTHING: DemoSettings(
            scenario=attacked,
            aggregator="multi-krum",
            compression=_PROJECTION,
            privacy=ToldPrivacy(),
            shared=SharedSettings(),
        ),
    }


def measure(settings: Settings) -> list[Figures]:
    """Run every case; one row each."""
    reports: dict[str, list[DemoReport]] = {}
    for _ in range(settings.repeats):
        for name, demo in cases(settings.scenario).items():
            reports.setdefault(name, []).append(_run(demo, settings.data_dir))
    plain_s = _round_s(reports[PLAIN])
    return [_row(name, found, plain_s) for name, found in reports.items()]


def _run(demo: DemoSettings, data_dir: Path | None) -> DemoReport:
    with Guardian() as guardian, DemoView(None, demo.scenario.num_rounds) as view:
        place = DemoPlace(folder=guardian.folder("fedagg-pipeline-"), guardian=guardian)
        report = asyncio.run(Demo(demo, place, view, data_dir=data_dir).run())
    if report.problem:
        raise RuntimeError(report.problem)
    return report


def _round_s(reports: Sequence[DemoReport]) -> float:
    """Median over all rounds but the first of each run, in which devices only start."""
    return statistics.median(
        one.duration_s for report in reports for one in report.rounds if one.round > 1
    )


def _row(name: str, reports: Sequence[DemoReport], plain_s: float) -> Figures:
    round_s, last = _round_s(reports), reports[-1]
    updates = sum(one.accepted for one in last.rounds)
    row: Figures = {
        "case": name,
        "round_s": round(round_s, 3),
        "overhead": f"{round_s / plain_s - 1:+.0%}",
        "kb_per_update": round(sum(one.bytes_up for one in last.rounds) / updates / 1024, 1),
        "accuracy": round(last.final_accuracy, 4),
        "epsilon": "-" if last.epsilon_spent is None else round(last.epsilon_spent, 3),
    }
    if name == EVERYTHING:
        met = round_s <= (1 + OVERHEAD_TARGET) * plain_s
        row |= {"target": f"overhead < {OVERHEAD_TARGET:.0%}", "met": "yes" if met else "no"}
    else:
        row |= {"target": "-", "met": "-"}
    return row


def main(argv: Sequence[str] | None = None) -> int:
    """Run all cases and print what they cost."""
    arguments = _parse(argv)
    scenario = Scenario(
        dataset="digits" if arguments.quick else arguments.dataset,
        num_devices=20,
        num_rounds=2 if arguments.quick else arguments.rounds,
        local_epochs=1,
        batch_size=32,
    )
    settings = Settings(
        scenario=scenario,
        repeats=1 if arguments.quick else arguments.repeats,
        data_dir=None if arguments.quick else arguments.data_dir,
    )
    rows = measure(settings)
    dim = _dim(scenario.dataset)
    if arguments.format == "json":
        report = {"dim": dim, "devices": scenario.num_devices, "results": rows}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
        return 0
    title = f"{scenario.num_devices} devices, {dim:,} elements, {scenario.dataset}"
    width = None if sys.stdout.isatty() else _WIDTH
    Console(width=width).print(table_of(cells(rows), title))
    return 0


def _dim(dataset: str) -> int:
    sizes = LAYER_SIZES[dataset]
    return sum(inner * outer + outer for inner, outer in pairwise(sizes))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    parser.add_argument("--dataset", default="fashion-mnist", help="digits, mnist, fashion-mnist")
    parser.add_argument("--data-dir", type=Path, default=None, help="where it lies")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few rounds: only that it runs")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
