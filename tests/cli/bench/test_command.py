import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.bench import machine, peers
from cli.bench.cases import CASES
from cli.bench.peers import PEERS
from cli.exit_codes import ExitCode
from cli.main import app

ROOT = Path(__file__).resolve().parents[3]
SMALL = ["bench", "kernels", "--n", "10", "--d", "2000", "--repeats", "2"]
FIGURES = {"ms", "min_ms", "gb_per_s", "read_once_multiple", "times_fedagg"}


@pytest.fixture(scope="module", autouse=True)
def small_products() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "_PRODUCT_ROWS", 64)
        yield


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    done = CliRunner().invoke(app, [*SMALL, "--format", "json"])
    assert done.exit_code == ExitCode.OK, done.stderr
    assert done.stdout.count("\n") == 1
    assert "krum by flwr" in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_every_rule_is_measured_with_every_library(report: dict[str, Any]) -> None:
    found = {(row["rule"], row["peer"]) for row in report["results"]}
    expected = {(rule, "fedagg") for rule in CASES}
    for peer in PEERS:
        expected |= {(rule, peer) for rule in peers.load_ways(peer)}
    assert found == expected
    assert report["left_out"] == []


@pytest.mark.slow
def test_rows_hold_the_figures(report: dict[str, Any]) -> None:
    for row in report["results"]:
        assert (row["n"], row["d"]) == (10, 2000)
        assert all(row[figure] > 0 for figure in FIGURES), row
        assert row["runs"] >= 1
        assert row["extra_mb"] is None or row["extra_mb"] >= 0
        assert (row["gflops"] is not None) == (row["rule"] in {"krum", "multi-krum"})
        if row["rule"] != "geometric-median":
            assert row["max_diff"] < 1e-5, row
            assert row["differing_share"] == 0.0, row


@pytest.mark.slow
def test_the_whole_run_is_described(report: dict[str, Any]) -> None:
    assert report["machine"]["cores"] >= 1
    assert report["read_once_ms"] > 0
    assert report["gb_per_s"] > 0
    assert report["matrix_product_gflops"] > 0
    assert [(size["n"], size["d"]) for size in report["sizes"]] == [(10, 2000)]
    assert report["settings"]["peers"] == list(PEERS)
    assert [one["rule"] for one in report["speedups"]] == list(CASES)


def test_rules_and_libraries_can_be_chosen() -> None:
    arguments = ["--rules", "median, mean", "--peers", "numpy", "--format", "markdown"]
    done = CliRunner().invoke(app, [*SMALL, *arguments])
    assert done.exit_code == ExitCode.OK, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert [line.split()[1] for line in lines] == ["rule", "---", "median", "mean"]
    assert "numpy ms" in lines[0]
    assert "torch ms" not in lines[0]


def test_without_other_libraries_only_this_one_is_measured() -> None:
    done = CliRunner().invoke(app, [*SMALL, "--rules", "mean", "--peers", ""])
    assert done.exit_code == ExitCode.OK, done.stderr
    assert "fedagg" in done.stdout
    assert "numpy  " not in done.stdout


def test_libraries_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "is_installed", lambda package: package == "numpy")
    done = CliRunner().invoke(app, [*SMALL, "--rules", "mean", "--format", "json"])
    assert done.exit_code == ExitCode.OK, done.stderr
    answer = json.loads(done.stdout)
    assert {row["peer"] for row in answer["results"]} == {"fedagg", "numpy"}
    assert {(one["peer"], one["reason"]) for one in answer["left_out"]} == {
        ("torch", "torch not installed"),
        ("byzfl", "byzfl and torch not installed"),
        ("flwr", "flwr not installed"),
    }
    assert "flwr is left out: flwr not installed" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--n", "0"], "--n"),
        (["--n", "2"], "--n"),
        (["--d", "0"], "--d"),
        (["--repeats", "0"], "--repeats"),
        (["--budget-s", "-1"], "--budget-s"),
        (["--seed", "-1"], "--seed"),
        (["--format", "xml"], "--format"),
        (["--rules", "krumm"], "--rules=krumm is unknown; there are mean,"),
        (["--rules", ","], "--rules must name at least one of mean,"),
        (["--peers", "numpy,jax"], "--peers=jax is unknown; there are numpy,"),
        (["--n", "1000000", "--d", "1000000"], "more than half"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_refused(arguments: list[str], problem: str) -> None:
    done = CliRunner().invoke(app, ["bench", "kernels", *arguments])
    assert done.exit_code == ExitCode.USAGE
    assert done.stdout == ""
    assert problem in done.stderr


def test_help_names_formats_rules_and_libraries() -> None:
    text = CliRunner().invoke(app, ["bench", "kernels", "--help"], env={"COLUMNS": "300"}).stdout
    assert "--format" in text
    for name in CASES:
        assert name in text


@pytest.mark.slow
def test_other_commands_do_not_import_the_libraries() -> None:
    script = "import sys, cli.main; print([m for m in ('torch', 'flwr') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"
