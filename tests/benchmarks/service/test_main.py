"""`make bench` still runs, and says what it promises. How fast is not for a test to say."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.service.__main__ import SUITE
from benchmarks.service.throughput import TRAFFIC

ROOT = Path(__file__).resolve().parents[3]


def run_quick(*names: str) -> dict[str, list[dict[str, Any]]]:
    command = [sys.executable, "-m", "benchmarks.service", "--quick", "--format", "json", *names]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    report = json.loads(output)
    assert report["quick"] is True
    assert "cores" in report["machine"]
    results: dict[str, list[dict[str, Any]]] = report["results"]
    assert set(results) == set(names)
    return results


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.long
def test_throughput_tells_every_path_beside_the_echo() -> None:
    rows = run_quick("throughput")["throughput"]
    assert [row["case"] for row in rows] == [traffic.name for traffic in TRAFFIC]
    for row in rows:
        assert row["updates_per_s"] > 0
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["cpu_us"] >= 0
        assert row["store_cpu_us"] >= 0
        assert row["echo_per_s"] > 0
        assert row["ratio"] > 0
        assert row["windows"] == 1


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.long
def test_scenarios_tell_what_the_targets_are_about() -> None:
    results = run_quick("connections", "burst", "rounds", "check-ins")
    (connections,) = results["connections"]
    assert connections["connections"] == connections["check_ins"] == 100
    assert connections["connected_pss_mb"] > 0 < connections["idle_pss_mb"]
    (burst,) = results["burst"]
    assert burst["uploads"] == 10
    assert burst["peak_rss_mb"] > 0 < burst["peak_pss_mb"]
    (rounds,) = results["rounds"]
    assert rounds["cpu_s_per_round"] > 0
    assert rounds["rounds"] == 1
    (check_ins,) = results["check-ins"]
    assert check_ins["busy_samples"] >= 1
    assert 0 < check_ins["busy_p50_ms"] <= check_ins["busy_p99_ms"]
    assert check_ins["aggregation_s"] > 0


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.long
def test_memory_is_told_of_every_process() -> None:
    rows = {row["process"]: row for row in run_quick("memory")["memory"]}
    assert {"launcher", "store", "coordinator-1", "all", "plain demo's servers"} <= set(rows)
    sizes = {name: row["pss_mb"] for name, row in rows.items()}
    apart = {"all", "plain demo's servers"}
    together = sum(size for name, size in sizes.items() if name not in apart)
    assert sizes["all"] == pytest.approx(together, rel=0.01)
    assert all(size > 1 for size in sizes.values())
    assert rows["coordinator-1"]["target"] == "PSS <= 60 MB"


def test_every_benchmark_is_run_quickly_here() -> None:
    tested = {"throughput", "connections", "burst", "rounds", "check-ins", "memory"}
    assert set(SUITE.benchmarks) == tested
