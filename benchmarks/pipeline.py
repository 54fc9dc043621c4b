"""Time rounds of 20 devices with plain averaging and with parts of the pipeline, up to everything.

Everything is shares, compression, differential privacy, Multi-Krum. Real processes, a real store;
the runs take turns, so that what else the machine does meets them alike. The time of a round is
that between its opening and its end, as the store's clock has it, training included. --data-dir DIR
names the folder with Fashion-MNIST.
"""

import argparse
import asyncio
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.harness.cases import Benchmark, Case, Suite
from benchmarks.harness.command import run_suite
from benchmarks.harness.figures import NO_TARGET, Figures, Target, judged, rounded
from cli.demo.report import DemoReport
from cli.demo.run import Demo, DemoPlace
from cli.demo.settings import DemoSettings, SharedSettings
from cli.demo.terms import CompressionTerms, ToldPrivacy
from cli.demo.view import DemoView
from cli.guardian import Guardian
from simulation.fleet.scenarios import Scenario

OVERHEAD_TARGET: Final = 0.5
PLAIN: Final = "plain FedAvg"
EVERYTHING: Final = "everything"

_ATTACKERS: Final = 4
_PROJECTION: Final = CompressionTerms(method="projection", ratio=0.1)


def settings_of(scenario: Scenario) -> Mapping[str, DemoSettings]:
    """Name what is run; each adds to the one before."""
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


def measure(
    repeats: int, *, dataset: str, rounds: int, data_dir: Path | None = None
) -> list[Figures]:
    """Run everything in turn; give one row each."""
    scenario = Scenario(
        dataset=dataset, num_devices=20, num_rounds=rounds, local_epochs=1, batch_size=32
    )
    reports: dict[str, list[DemoReport]] = {}
    for _ in range(repeats):
        for name, demo in settings_of(scenario).items():
            reports.setdefault(name, []).append(_run(demo, data_dir))
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
    overhead = round_s / plain_s - 1
    limit = Target(name="overhead", figure=overhead, limit=OVERHEAD_TARGET)
    return {
        "case": name,
        "round_s": rounded(round_s),
        "overhead": f"{overhead:+.0%}",
        "kb_per_update": rounded(sum(one.bytes_up for one in last.rounds) / updates / 1024),
        "accuracy": rounded(last.final_accuracy),
        "epsilon": NO_TARGET if last.epsilon_spent is None else rounded(last.epsilon_spent),
        **(judged(limit) if name == EVERYTHING else judged()),
    }


def suite(data_dir: Path | None) -> Suite:
    """Describe the benchmark on a data set that lies in a folder, as in `datasets.load`."""
    full = partial(measure, dataset="fashion-mnist", rounds=6, data_dir=data_dir)
    quick = partial(measure, dataset="digits", rounds=2)
    return Suite(
        name="pipeline",
        command="bench-pipeline",
        benchmarks={
            "rounds": Benchmark(
                cases=[Case(name="everything", full=full, quick=quick)],
                repeats=3,
            )
        },
        packages=("fedagg", "grpcio", "torch"),
        describe=__doc__,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data-dir", type=Path)
    known, others = parser.parse_known_args()
    sys.exit(run_suite(suite(known.data_dir), others))
