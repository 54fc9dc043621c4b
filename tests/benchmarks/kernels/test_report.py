import dataclasses
import json

from benchmarks.harness.machine import Machine
from benchmarks.harness.tables import Report
from benchmarks.kernels.machine import ReadOnce
from benchmarks.kernels.report import megabytes, number, tables_of
from benchmarks.kernels.results import Comparison, LeftOut, Result, Size

OURS = Result(
    n=100,
    d=1000,
    rule="krum",
    peer="fedagg",
    ms=2.0,
    min_ms=1.5,
    runs=7,
    gb_per_s=0.2,
    read_once_multiple=4.0,
    gflops=5.05,
    extra_mb=0.04,
    times_fedagg=1.0,
    max_diff=0.0,
    differing_share=0.0,
    way="fedagg",
    note="",
)
THEIRS = dataclasses.replace(
    OURS,
    peer="flwr",
    ms=250.0,
    times_fedagg=125.0,
    extra_mb=1234.5,
    max_diff=None,
    differing_share=0.25,
)
BYZFL = dataclasses.replace(
    OURS, peer="byzfl", ms=25.0, times_fedagg=12.5, max_diff=3e-7, note="other neighbours"
)
FOUND = Comparison(
    machine=Machine(
        processor="A Processor",
        cores=2,
        memory_gb=24.0,
        system="Linux 6",
        python="3.11",
        versions={"numpy": "2.4"},
    ),
    settings={"seed": 0},
    matrix_product_gflops=300.0,
    sizes=[
        Size(n=100, d=1000, read_once=ReadOnce(ms=0.5, gb_per_s=0.8, reader="torch")),
        Size(n=3, d=7, read_once=ReadOnce(ms=0.1, gb_per_s=0.1, reader="numpy")),
    ],
    results=[OURS, THEIRS, BYZFL, dataclasses.replace(OURS, n=3, d=7, rule="mean", gflops=None)],
    left_out=[
        LeftOut(peer="torch", reason="torch not installed"),
        LeftOut(peer="flwr", reason="too slow", n=3, d=7, rule="mean", way="aggregate"),
    ],
)


def test_a_table_puts_libraries_side_by_side() -> None:
    report = Report(command="measure", machine=str(FOUND.machine), tables=tables_of(FOUND))
    lines = report.markdown().splitlines()
    assert lines[0].startswith("`measure`, ")
    assert lines[0].endswith("A Processor, 2 cores, 24.0 GB, Linux 6, Python 3.11, numpy 2.4.")
    assert "#### 100 x 1,000" in lines
    heading = next(line for line in lines if line.startswith("| rule"))
    assert heading.endswith("| flwr ms (extra MB) | byzfl ms (extra MB) | against the fastest |")
    row = next(line for line in lines if line.startswith("| krum"))
    assert row == ("| krum | 2 | 0.2 | 4 | 5.05 | 0.0 | 250 (1,234) | 25 (0.0) | 12.5 (byzfl) |")
    assert "| mean | 2 | 0.2 | 4 |  | 0.0 |  |" in lines
    assert "other neighbours: krum by byzfl." in lines
    assert "krum by flwr: 25 % of the values differ beyond rounding." in lines
    assert "Left out: torch: torch not installed." in lines
    assert "Left out: flwr mean (aggregate) at n=3 d=7: too slow." in lines
    assert "float32 matrix products reach 300 GFLOP/s here." in lines


def test_cells_of_a_table_line_match_its_heading() -> None:
    first, second = tables_of(FOUND)
    assert {len(line) for line in first.lines} == {9}
    assert {len(line) for line in second.lines} == {7}


def test_json_tells_the_fastest_other_library() -> None:
    answer = json.loads(json.dumps(FOUND.as_json(), allow_nan=False))
    assert answer["speedups"] == [
        {"n": 100, "d": 1000, "rule": "krum", "fastest_peer": "byzfl", "speedup": 12.5}
    ]
    assert answer["read_once_ms"] == 0.5
    assert answer["gb_per_s"] == 0.8
    assert [size["reader"] for size in answer["sizes"]] == ["torch", "numpy"]
    assert answer["machine"]["versions"] == {"numpy": "2.4"}


def test_figures_have_three_digits() -> None:
    values = [None, 0.01234, 1.234, 12.34, 123.4, 12345.6]
    assert [number(value) for value in values] == ["", "0.0123", "1.23", "12.3", "123", "12,346"]
    assert [megabytes(value) for value in (None, 0.004, 12.34, 1234.5)] == [
        "", "0.0", "12.3", "1,234",
    ]  # fmt: skip
