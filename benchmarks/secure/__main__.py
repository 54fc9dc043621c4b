"""Measure shared rounds beside plain ones, and beside Flower's SecAgg+.

The environment is that of a coordinator: its memory allocator, and one thread for matrix products.
"""

import os
import sys
from typing import Final

from benchmarks.harness.cases import Suite
from benchmarks.harness.command import run_suite
from benchmarks.secure import device, flower, round_end, servers
from server.processes.supervisor import worker_environment

SUITE: Final = Suite(
    name="secure",
    command="bench-secure",
    benchmarks={
        "sharing": device.BENCHMARK,
        "servers": servers.BENCHMARK,
        "round-end": round_end.BENCHMARK,
        "flower": flower.BENCHMARK,
    },
    packages=("fedagg", "grpcio", "cryptography", "numpy", "numba"),
    describe=__doc__,
)


def in_worker_environment() -> None:
    """Start again, once, where variables are missing that count only when a process starts."""
    missing = worker_environment()
    if missing:
        command = [sys.executable, "-m", "benchmarks.secure", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **missing})  # noqa: S606  # ourselves


if __name__ == "__main__":
    in_worker_environment()
    sys.exit(run_suite(SUITE))
