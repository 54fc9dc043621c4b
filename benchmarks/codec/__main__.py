"""Measure encodings of one real update: bytes, and processor time on one thread.

The update is that of a network with 1,663,370 parameters after five steps of training. Speeds are
megabytes a second, of the dense update where a column says so.
"""

import sys
from typing import Final

import torch

from benchmarks.codec import encodings, references
from benchmarks.harness.cases import Suite
from benchmarks.harness.command import run_suite

SUITE: Final = Suite(
    name="codec",
    command="bench-codec",
    benchmarks={"references": references.BENCHMARK, "encodings": encodings.BENCHMARK},
    packages=("fedagg", "numpy", "torch", "zstandard", "flwr"),
    describe=__doc__,
)

if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(run_suite(SUITE))
