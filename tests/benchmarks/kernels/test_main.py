import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import pytest

from benchmarks.kernels import machine
from benchmarks.kernels.__main__ import main
from benchmarks.kernels.peers import registry
from benchmarks.kernels.peers.registry import PEERS, load_ways
from benchmarks.kernels.rules import RULES

SMALL = ["--n", "10", "--d", "2000", "--repeats", "2"]
FIGURES = {"ms", "min_ms", "gb_per_s", "read_once_multiple", "times_fedagg"}
INSTALLED = [peer for peer in PEERS if registry.is_installed(peer)]


@pytest.fixture(scope="module", autouse=True)
def small_products() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "_PRODUCT_ROWS", 64)
        yield


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        assert main([*SMALL, "--format", "json"]) == 0
    assert stdout.getvalue().count("\n") == 1
    assert f"krum by {INSTALLED[-1]}" in stderr.getvalue()
    found: dict[str, Any] = json.loads(stdout.getvalue())
    return found


@pytest.mark.slow
@pytest.mark.peers
def test_every_rule_is_measured_with_every_library(report: dict[str, Any]) -> None:
    found = {(row["rule"], row["peer"]) for row in report["results"]}
    expected = {(rule, "fedagg") for rule in RULES}
    for peer in INSTALLED:
        expected |= {(rule, peer) for rule in load_ways(peer)}
    assert found == expected
    assert {one["peer"] for one in report["left_out"]} == set(PEERS) - set(INSTALLED)


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
    assert report["settings"]["peers"] == INSTALLED
    assert [one["rule"] for one in report["speedups"]] == list(RULES)


def test_rules_and_libraries_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rules", "median, mean", "--peers", "numpy", "--format", "markdown"]
    assert main([*SMALL, *arguments]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split()[1] for line in lines] == ["rule", "---", "median", "mean"]
    assert "numpy ms" in lines[0]
    assert "torch ms" not in lines[0]


def test_without_other_libraries_only_this_one_is_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*SMALL, "--rules", "mean", "--peers", ""]) == 0
    text = capsys.readouterr().out
    assert "fedagg" in text
    assert "numpy  " not in text


def test_libraries_that_are_not_installed_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "is_installed", lambda package: package == "numpy")
    assert main([*SMALL, "--rules", "mean", "--format", "json"]) == 0
    stdout, stderr = capsys.readouterr()
    answer = json.loads(stdout)
    assert {row["peer"] for row in answer["results"]} == {"fedagg", "numpy"}
    assert {(one["peer"], one["reason"]) for one in answer["left_out"]} == {
        ("torch", "torch not installed"),
        ("byzfl", "byzfl and torch not installed"),
        ("flwr", "flwr not installed"),
    }
    assert "flwr is left out: flwr not installed" in stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--n", "0"], "--n=0 must be 3 or more"),
        (["--n", "2"], "--n=2 must be 3 or more"),
        (["--n", "many"], "--n"),
        (["--d", "0"], "--d=0 must be 1 or more"),
        (["--repeats", "0"], "--repeats"),
        (["--budget-s", "-1"], "--budget-s"),
        (["--limit-s", "nan"], "--limit-s"),
        (["--seed", "-1"], "--seed"),
        (["--format", "xml"], "--format"),
        (["--rules", "krumm"], "--rules=krumm is unknown; there are mean,"),
        (["--rules", ","], "--rules must name at least one of mean,"),
        (["--peers", "numpy,jax"], "--peers=jax is unknown; there are numpy,"),
        (["--n", "1000000", "--d", "1000000"], "more than half"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_refused(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert problem in stderr


def test_help_names_formats_rules_and_libraries(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "--format" in text
    for name in (*RULES, *PEERS):
        assert name in text
