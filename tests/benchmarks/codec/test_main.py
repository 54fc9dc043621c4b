"""`make bench-codec` still runs, and says what it promises. How fast is not for a test to say."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.codec.__main__ import SUITE
from benchmarks.codec.encodings import ENCODINGS
from benchmarks.codec.real_updates import real_update
from benchmarks.harness.figures import NO_TARGET
from tests.peers import load

ROOT = Path(__file__).resolve().parents[3]


def run_quick(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.codec", "--quick", *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.long
def test_every_encoding_is_measured_beside_other_ways_to_send_the_update() -> None:
    report: dict[str, Any] = json.loads(run_quick("--format", "json"))
    assert report["quick"] is True
    results = report["results"]
    assert list(results) == list(SUITE.benchmarks)
    dense_bytes = real_update("perceptron").dense_bytes
    references = {row["reference"]: row for row in results["references"]}
    assert references["plain int8"]["bytes"] < dense_bytes / 3.9
    assert all(row["write_dense_mb_s"] > 0 < row["read_dense_mb_s"] for row in references.values())
    found = [(row["method"], row["share"], row["numbers"]) for row in results["encodings"]]
    assert found == [(one.method.value, one.share, one.value_type.value) for one in ENCODINGS]
    for row in results["encodings"]:
        assert row["bytes"] <= row["stored_bytes"]
        assert row["encode_dense_mb_s"] > 0 < row["decode_mb_s"]
        assert (row["target"] == NO_TARGET) == (row["numbers"] == "float32" or row["share"] == 1)
        # Bytes are the same on every machine, so the promises can be tested here.
        assert row["met"] in {NO_TARGET, "yes"}


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.long
def test_tables_are_printed_as_text_and_as_markdown() -> None:
    assert "plain int8" in run_quick("references")
    lines = run_quick("references", "--format", "markdown").splitlines()
    assert "### references" in lines
    assert "| --- | ---: | ---: | ---: | ---: |" in lines
    (origin,) = [line for line in lines if line.startswith("`make bench-codec")]
    assert origin.startswith('`make bench-codec ARGS="references --quick"`, 20')


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.peers
def test_flowers_dense_format_is_measured_where_flower_is() -> None:
    load("flwr")
    report: dict[str, Any] = json.loads(run_quick("references", "--format", "json"))
    assert "flwr" in report["machine"]
    references = {row["reference"]: row for row in report["results"]["references"]}
    assert references["Flower dense"]["bytes"] > real_update("perceptron").dense_bytes
