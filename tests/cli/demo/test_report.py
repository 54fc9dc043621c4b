import json
import math
from dataclasses import replace

from rich.console import Console

from cli.demo.report import DemoReport, RoundReport, round_line
from cli.demo.settings import DemoSettings
from simulation.fleet.scenarios import Scenario

ROUND = RoundReport(
    round=3,
    decision="published",
    reason="",
    accuracy=0.9123,
    loss=0.25,
    accepted=20,
    rejected=1,
    excluded=4,
    duration_s=1.5,
    bytes_up=2048,
    bytes_down=4096,
)
REPORT = DemoReport(
    settings=DemoSettings(scenario=Scenario(alpha=math.inf)),
    rounds=[ROUND],
    wall_s=12.0,
    acknowledged_updates=20,
    lost_updates=0,
    duplicate_updates=0,
    initial_accuracy=0.1,
    peak_server_pss_mb=200.0,
)


# As long as anything gets: 1,000 rounds of 1,000 devices, a model that diverged, large models.
LARGEST = replace(
    ROUND,
    round=1000,
    loss=1.2345e38,
    accepted=1000,
    rejected=1000,
    excluded=1000,
    duration_s=1234.56,
    bytes_up=1000 * 407_112,
    bytes_down=1000 * 407_300,
)


def test_a_round_has_the_familiar_line() -> None:
    assert round_line(ROUND, 15) == (
        "[ROUND 3/15] accuracy 0.9123  loss 0.2500  accepted 20  rejected 1  excluded 4"
    )


def test_an_abandoned_round_says_why() -> None:
    abandoned = replace(ROUND, decision="abandoned", reason="too_few_contributions")
    assert round_line(abandoned, 15) == "[ROUND 3/15] abandoned: too_few_contributions"


def test_lines_fit_80_columns() -> None:
    usual = replace(ROUND, round=15)
    assert "loss 0.2500" in round_line(usual, 15)
    wordy = replace(LARGEST, decision="abandoned", reason="because " * 20)
    for one in (usual, LARGEST, wordy, replace(LARGEST, loss=math.inf)):
        assert len(round_line(one, 1000)) <= 80
    assert round_line(LARGEST, 1000).endswith("accepted 1000  rejected 1000  excluded 1000")


def test_the_json_object_has_the_promised_members() -> None:
    answer = json.loads(json.dumps(REPORT.as_json(), allow_nan=False))
    promised = {
        "rounds",
        "final_accuracy",
        "wall_s",
        "peak_server_pss_mb",
        "lost_updates",
        "duplicate_updates",
    }
    assert promised <= answer.keys()
    of_a_round = {
        "round",
        "accuracy",
        "loss",
        "accepted",
        "rejected",
        "duration_s",
        "bytes_up",
        "bytes_down",
    }
    assert of_a_round <= answer["rounds"][0].keys()
    assert answer["final_accuracy"] == 0.9123


def test_numbers_json_cannot_hold_become_null() -> None:
    diverged = replace(REPORT, rounds=[replace(ROUND, loss=math.inf)])
    answer = json.loads(json.dumps(diverged.as_json(), allow_nan=False))
    assert answer["rounds"][0]["loss"] is None


def test_without_a_round_the_accuracy_is_the_initial_one() -> None:
    assert replace(REPORT, rounds=[]).final_accuracy == 0.1


def test_a_lost_or_repeated_update_or_a_missing_round_is_a_failure() -> None:
    assert REPORT.is_good
    assert not replace(REPORT, lost_updates=1).is_good
    assert not replace(REPORT, duplicate_updates=1).is_good
    assert not replace(REPORT, problem="stuck").is_good


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    console = Console(width=80, record=True, quiet=False, file=None)
    rounds = [replace(ROUND, duration_s=123.45), LARGEST, replace(LARGEST, decision="abandoned")]
    with console.capture() as captured:
        console.print(replace(REPORT, rounds=rounds).table())
    lines = captured.get().splitlines()
    assert all(len(line) <= 80 and "…" not in line for line in lines)
    row = ["3", "0.9123", "0.2500", "20", "1", "4", "123.45", "2.0", "4.0"]
    assert lines[3].split() == row
    assert lines[4].split()[-3:] == ["1234.56", "397570", "397754"]
