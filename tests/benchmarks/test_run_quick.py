"""`make bench` still runs, and says what it promises. How fast is not for a test to say."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import throughput
from benchmarks.run import BENCHMARKS

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.process, pytest.mark.slow]


def run_quick(*names: str) -> dict[str, list[dict[str, Any]]]:
    command = [sys.executable, "-m", "benchmarks.run", "--quick", "--format", "json", *names]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    report = json.loads(output)
    assert report["quick"] is True
    assert report["machine"]["cpus"] >= 1
    results: dict[str, list[dict[str, Any]]] = report["results"]
    assert set(results) == set(names)
    return results


def test_throughput_tells_every_path_beside_the_echo() -> None:
    rows = run_quick("throughput")["throughput"]
    assert [row["case"] for row in rows] == [case.name for case in throughput.CASES]
    for row in rows:
        assert row["updates_per_s"] > 0
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["cpu_us"] >= 0
        assert row["store_cpu_us"] >= 0
        assert row["echo_per_s"] > 0
        assert row["ratio"] > 0
        assert row["windows"] == 1


def test_scenarios_tell_what_the_targets_are_about() -> None:
    results = run_quick("connections", "burst", "rounds", "check-ins")
    (connections,) = results["connections"]
    assert connections["connections"] == connections["check_ins"] == 100
    assert connections["peak_rss_mb"] >= connections["idle_rss_mb"] > 0
    (burst,) = results["burst"]
    assert burst["uploads"] == 10
    assert burst["peak_rss_mb"] > 0
    (rounds,) = results["rounds"]
    assert rounds["cpu_s"] > 0
    assert rounds["rounds"] == 2
    (check_ins,) = results["check-ins"]
    assert check_ins["busy_samples"] >= 1
    assert 0 < check_ins["busy_p50_ms"] <= check_ins["busy_p99_ms"]
    assert check_ins["aggregation_s"] > 0


def test_every_benchmark_is_run_quickly_here() -> None:
    assert set(BENCHMARKS) == {"throughput", "connections", "burst", "rounds", "check-ins"}
