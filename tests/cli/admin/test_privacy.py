"""`fedagg admin privacy`: a plan asks nobody, a budget is asked of the server."""

import json

import httpx
import pytest
from typer.testing import CliRunner

from cli.admin import privacy
from cli.admin.client import AdminClient
from cli.exit_codes import ExitCode
from cli.main import app

PLAN = ["admin", "privacy", "plan", "--population", "10000", "--cohort", "100", "--rounds", "1000"]
STATUS = {
    "task": "digits",
    "noise": "central",
    "mechanism": "gaussian",
    "sampling": "none",
    "noise_multiplier": 3.8,
    "clipping_norm": 1.0,
    "charge": "{}",
    "accountant": "pld",
    "delta": 1e-5,
    "epsilon_budget": 1.0,
    "epsilon_spent": 0.98,
    "epsilon_by_accountant": {"pld": 0.98, "rdp": 1.07},
    "rounds_committed": 1,
    "rounds_reserved": 0,
    "rounds_remaining": 0,
    "uncharged_versions": 0,
    "budget_exhausted": True,
    "max_participations": None,
    "participations": {"1": 7, "2": 3},
}


def test_a_plan_says_what_the_specification_says() -> None:
    found = CliRunner().invoke(app, [*PLAN, "--dim", "3930", "--format", "json"])
    plan = json.loads(found.stdout)
    assert plan["noise_multiplier"] == pytest.approx(1.417, abs=0.002)
    assert plan["epsilon_pld"] <= 1.0 < plan["epsilon_rdp"]
    assert plan["error_per_coordinate"] == pytest.approx(plan["noise_multiplier"] / 100)
    assert "coin of its own" in plan["assumption"]


def test_a_plan_without_sampling_needs_more_noise() -> None:
    options = ["--sampling", "none", "--max-participations", "10", "--format", "json"]
    plan = json.loads(CliRunner().invoke(app, [*PLAN, *options]).stdout)
    assert plan["noise_multiplier"] == pytest.approx(11.80, abs=0.01)
    banded = json.loads(CliRunner().invoke(app, [*PLAN, *options, "--bands", "100"]).stdout)
    assert banded["cumulative_error"] < plan["cumulative_error"] / 3


def test_what_cannot_be_planned_is_a_usage_error() -> None:
    for options, reason in (
        (["--accountant", "moments"], "must be pld or rdp"),
        (["--epsilon", "0"], "epsilon=0"),
        (["--max-participations", "3"], "must not be given with sampling"),
    ):
        found = CliRunner().invoke(app, [*PLAN, *options])
        assert found.exit_code == ExitCode.USAGE
        assert reason in found.stderr.replace("\n", " ")


def test_a_budget_is_shown_with_both_accountants(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/api/v1/tasks/digits/privacy"
        return httpx.Response(200, json=STATUS)

    def client(url: str, token: str | None) -> AdminClient:
        return AdminClient(url, token, transport=httpx.MockTransport(answer))

    monkeypatch.setattr(privacy, "AdminClient", client)
    show = ["admin", "privacy", "show", "--task", "digits"]
    text = CliRunner().invoke(app, show, env={"COLUMNS": "200"}).stdout
    for fact in ("epsilon spent rdp", "1.07", "budget exhausted", "7 in 1, 3 in 2"):
        assert fact in text
    told = json.loads(CliRunner().invoke(app, [*show, "--format", "json"]).stdout)
    assert told["epsilon_spent"] == STATUS["epsilon_spent"]
