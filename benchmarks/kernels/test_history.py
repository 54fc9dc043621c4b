"""`make bench-kernels` runs this with pytest-benchmark, which keeps every run in `.benchmarks/`.

No other library takes part: what is kept is this one, commit after commit.
`.venv/bin/pytest-benchmark compare` shows what is kept.
"""

from typing import Final

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.kernels.rules import RULES, make_rows
from benchmarks.kernels.ways import Matrix

NUM_ROWS: Final = 100
DIM: Final = 1_000_000


@pytest.fixture(scope="module")
def rows() -> Matrix:
    """Draw the rows all rules are measured on."""
    return make_rows(NUM_ROWS, DIM, seed=0)


@pytest.mark.parametrize("rule", RULES)
def test_rule(benchmark: BenchmarkFixture, rows: Matrix, rule: str) -> None:
    """Time one rule."""
    case = RULES[rule]
    call = case.way().bind(rows, case.num_byzantine(NUM_ROWS))
    call()  # compiles
    benchmark(call)
