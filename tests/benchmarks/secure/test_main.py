"""`make bench-secure` still runs, and says what it promises. How fast is not for a test to say."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.figures import NO_TARGET
from benchmarks.harness.processes import PEERS_PYTHON
from benchmarks.secure.__main__ import SUITE
from benchmarks.secure.flower import MAX_ERROR
from benchmarks.secure.servers import VARIANTS
from security.shared_round.terms.parameter_facts import ShareFormat

ROOT = Path(__file__).resolve().parents[3]


def run_quick(*names: str) -> dict[str, list[dict[str, Any]]]:
    command = [sys.executable, "-m", "benchmarks.secure", "--quick", "--format", "json", *names]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    report = json.loads(output)
    assert report["quick"] is True
    results: dict[str, list[dict[str, Any]]] = report["results"]
    assert set(results) == set(names)
    return results


def is_judged(row: dict[str, Any]) -> bool:
    if row["target"] == NO_TARGET:
        return bool(row["met"] == NO_TARGET)
    return "<=" in row["target"] and str(row["met"]).startswith(("yes", "no: "))


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.long
def test_one_process_tells_of_sharing_and_of_the_end_of_a_round() -> None:
    results = run_quick("sharing", "round-end")
    assert all(is_judged(row) for rows in results.values() for row in rows)
    assert [row["format"] for row in results["sharing"]] == list(ShareFormat)
    for row in results["sharing"]:
        assert 0 < row["share_ms"] < row["seal_ms"]
        assert row["plain_bytes"] < row["wire_bytes"]
        assert row["peak_rss_mb"] > 1
    for row in results["round-end"]:
        assert row["cpu_ms"] > 0


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not PEERS_PYTHON.exists(), reason="flwr is not installed: make peers")
def test_another_tells_of_flower() -> None:
    rows = run_quick("flower")["flower"]
    assert all(is_judged(row) for row in rows)
    theirs, *ours = rows
    assert theirs["system"].startswith("SecAgg+ of flwr ")
    assert theirs["max_error"] <= MAX_ERROR
    assert len(ours) == 3
    for row in ours:
        assert row["max_error"] <= MAX_ERROR
        assert row["slowest_server_s"] < row["servers_s"] < row["round_s"]
        assert row["bytes_up"] > 4 * row["dim"]


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.long
def test_shared_rounds_are_played_by_real_processes_beside_plain_ones() -> None:
    rows = run_quick("servers")["servers"]
    found = [(row["format"], row["checks"]) for row in rows]
    assert found == [(variant.share_format, variant.checks) for variant in VARIANTS]
    for row in rows:
        assert is_judged(row)
        assert row["target"] != NO_TARGET
        assert row["plain_ms"] > 0
        assert 0 < row["slowest_ratio"] < row["five_ratio"]
        holder_ms = [float(value) for value in row["holder_ms"].split()]
        assert len(holder_ms) == 5
        assert min(holder_ms) > 0


def test_every_benchmark_is_run_quickly_here() -> None:
    assert set(SUITE.benchmarks) == {"sharing", "servers", "round-end", "flower"}
