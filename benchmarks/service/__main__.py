"""Measure the service on this machine.

Starts `fedagg serve` with an embedded store for each case, on loopback and a temporary folder, with
durability on, and loads it from processes of their own.
"""

import sys
from typing import Final

from benchmarks.harness.cases import Suite
from benchmarks.harness.command import run_suite
from benchmarks.service import footprint, scenarios, throughput

SUITE: Final = Suite(
    name="service",
    command="bench",
    benchmarks={
        "throughput": throughput.BENCHMARK,
        "connections": scenarios.CONNECTIONS,
        "burst": scenarios.BURST,
        "rounds": scenarios.ROUNDS,
        "check-ins": scenarios.CHECK_INS,
        "memory": footprint.BENCHMARK,
    },
    packages=("fedagg", "grpcio"),
    describe=__doc__,
)

if __name__ == "__main__":
    sys.exit(run_suite(SUITE))
