"""The memory of processes, in sizes that add up: of an idle `fedagg serve`, of demos at most."""

import json
import subprocess
import sys
from functools import partial
from typing import Final

from benchmarks.harness.cases import Benchmark, Case
from benchmarks.harness.figures import Figures, Target, judged, megabytes
from benchmarks.harness.processes import ROOT
from benchmarks.service.deployment import BenchTask, deployment
from monitoring.process_memory import proportional_bytes

MAX_MB: Final = {
    "launcher": 55.0,
    "template": 110.0,
    "coordinator": 60.0,
    "plain demo's servers": 280.0,
    "shared demo's servers": 500.0,
}
"""By the start of a process's name."""

_TASK: Final = BenchTask(name="idle", dim=1_000, goal=10)


def served(_: int, *, workers: int) -> list[Figures]:
    """Give a row for each process of `fedagg serve` that nobody has asked anything yet."""
    with deployment([_TASK], workers=workers) as deployed:
        # The round opens once the task is made, and with it everything that is loaded late.
        deployed.open_round(_TASK)
        processes = {"launcher": deployed.launcher.pid, **deployed.launcher.children()}
        sizes = {name: proportional_bytes(pid) for name, pid in processes.items()}
    return [_row(name, size) for name, size in (*sizes.items(), ("all", sum(sizes.values())))]


def demonstrated(_: int, *, mode: str, rounds: int) -> list[Figures]:
    """Give the largest sum of the servers of a whole demonstration."""
    command = [sys.executable, "-m", "cli.main", "demo", "--format", "json"]
    command += ["--mode", mode, "--rounds", str(rounds)]
    done = subprocess.run(  # noqa: S603  # our own command
        command, cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    peak_mb = json.loads(done.stdout)["peak_server_pss_mb"]
    return [_row(f"{mode} demo's servers", 1e6 * peak_mb)]


def _row(what: str, num_bytes: float) -> Figures:
    found = megabytes(num_bytes)
    limits = [limit for name, limit in MAX_MB.items() if what.startswith(name)]
    targets = [Target(name="PSS", figure=found, limit=limit, unit="MB") for limit in limits]
    return {"process": what, "pss_mb": found, **judged(*targets)}


BENCHMARK: Final = Benchmark(
    cases=[
        Case(
            name="serve",
            full=partial(served, workers=2),
            quick=partial(served, workers=1),
        ),
        Case(
            name="demo",
            full=partial(demonstrated, mode="plain", rounds=15),
            quick=partial(demonstrated, mode="plain", rounds=1),
        ),
        Case(
            name="shared demo",
            full=partial(demonstrated, mode="shared", rounds=15),
            quick=None,
        ),
    ]
)
