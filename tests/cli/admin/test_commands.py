"""The device and admin commands against a real service that they train a model on."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from cli.admin.client import AdminClient
from cli.exit_codes import CliError, ExitCode
from cli.main import app
from simulation.models import initial_weights
from tests.cli.deployment import TASK, TOKEN, Deployment, deployed

pytestmark = pytest.mark.process

NUM_ROUNDS = 2


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("admin"), workers=1, num_rounds=NUM_ROUNDS) as running:
        yield running


@pytest.fixture(scope="module")
def devices(service: Deployment) -> Result:
    """What `fedagg device` said when three devices had trained the task to its end."""
    return CliRunner().invoke(
        app,
        ["device", "--server", service.grpc, "--task", TASK, "--count", "3", "--insecure",
         "--format", "json"],
    )  # fmt: skip


def _admin(service: Deployment, *arguments: str, token: str = TOKEN) -> Result:
    environment = {"FEDAGG_ADMIN_URL": service.url, "FEDAGG_ADMIN_TOKEN": token, "COLUMNS": "200"}
    return CliRunner().invoke(app, ["admin", *arguments], env=environment)


def test_devices_train_until_the_task_is_finished(devices: Result) -> None:
    assert devices.exit_code == ExitCode.OK, devices.stderr
    found = json.loads(devices.stdout)["devices"]
    assert [one["device"] for one in found] == ["device-0000", "device-0001", "device-0002"]
    assert {one["outcome"] for one in found} == {"finished"}
    assert {one["accepted"] for one in found} == {NUM_ROUNDS}


@pytest.mark.usefixtures("devices")
def test_tasks(service: Deployment) -> None:
    (task,) = json.loads(_admin(service, "tasks", "list", "--format", "json").stdout)
    assert (task["task"], task["published_rounds"]) == (TASK, NUM_ROUNDS)
    assert TASK in _admin(service, "tasks", "list").stdout
    shown = json.loads(_admin(service, "tasks", "show", "--format", "json").stdout)
    assert shown["num_rounds"] == NUM_ROUNDS
    assert "num rounds" in _admin(service, "tasks", "show", "--task", TASK).stdout


@pytest.mark.usefixtures("devices")
def test_rounds(service: Deployment) -> None:
    found = json.loads(_admin(service, "rounds", "list", "--format", "json").stdout)
    assert [(one["number"], one["accepted"]) for one in found] == [(2, 3), (1, 3)]
    assert "published" in _admin(service, "rounds", "list").stdout
    shown = json.loads(_admin(service, "rounds", "show", "1", "--format", "json").stdout)
    assert shown == found[1]
    absent = _admin(service, "rounds", "show", "99")
    assert absent.exit_code == ExitCode.REFUSED


@pytest.mark.usefixtures("devices")
def test_models_and_rollback(service: Deployment) -> None:
    versions = json.loads(_admin(service, "models", "list", "--format", "json").stdout)
    assert [one["version"] for one in versions] == [3, 2, 1]
    shown = json.loads(_admin(service, "models", "show", "2", "--format", "json").stdout)
    assert shown == versions[1]
    assert "restored" not in _admin(service, "models", "rollback", "2").stderr
    restored = _admin(service, "models", "rollback", "2", "--format", "json")
    assert json.loads(restored.stdout)["version"] == 2
    table = _admin(service, "models", "list").stdout.splitlines()
    assert [line.split()[:2] for line in table if line.startswith("*")] == [["*", "2"]]


def _export(service: Deployment, path: Path, *arguments: str) -> Result:
    environment = {"FEDAGG_ADMIN_URL": service.url, "FEDAGG_ADMIN_TOKEN": TOKEN}
    command = ["models", "export", "--output", str(path), *arguments]
    return CliRunner().invoke(app, command, env=environment)


@pytest.mark.usefixtures("devices")
def test_models_are_brought_out_whole_or_not_at_all(
    service: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = json.loads(_admin(service, "models", "list", "--format", "json").stdout)
    for one in versions:
        path = tmp_path / f"{one['version']}.safetensors"
        answer = _export(service, path, "--version", str(one["version"]), "--format", "json")
        assert answer.exit_code == ExitCode.OK, answer.stderr
        assert json.loads(answer.stdout)["sha256"] == one["sha256"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == one["sha256"]
    current = json.loads(_admin(service, "tasks", "show", "--format", "json").stdout)
    assert _export(service, tmp_path / "current").exit_code == ExitCode.OK
    digest = hashlib.sha256((tmp_path / "current").read_bytes()).hexdigest()
    assert digest == current["model"]["sha256"]
    absent = _export(service, tmp_path / "absent", "--version", "99")
    assert (absent.exit_code, "UNKNOWN_MODEL_VERSION" in absent.stderr) == (ExitCode.REFUSED, True)
    monkeypatch.setattr(AdminClient, "model_file", lambda *_: iter([b"something else"]))
    wrong = _export(service, tmp_path / "current", "--force")
    assert (wrong.exit_code, "nothing was written" in wrong.stderr) == (ExitCode.FAILURE, True)
    assert hashlib.sha256((tmp_path / "current").read_bytes()).hexdigest() == digest
    names = {"1.safetensors", "2.safetensors", "3.safetensors", "current"}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.usefixtures("devices")
def test_a_model_is_brought_out_for_torch(service: Deployment, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    assert _export(service, path, "--version", "1").exit_code == ExitCode.OK
    state = torch.load(path, weights_only=True)
    weights = initial_weights("digits", 0)
    assert list(state) == list(weights)
    for name, tensor in weights.items():
        np.testing.assert_array_equal(state[name].numpy(), tensor)


def test_a_version_that_never_was_is_refused(service: Deployment) -> None:
    result = _admin(service, "models", "rollback", "99")
    assert result.exit_code == ExitCode.REFUSED
    assert "UNKNOWN_MODEL_VERSION" in result.stderr
    assert result.stdout == ""


def test_without_the_token_nothing_is_told(service: Deployment) -> None:
    result = _admin(service, "tasks", "list", token="a-wrong-token-of-16")  # noqa: S106
    assert result.exit_code == ExitCode.REFUSED
    assert "FEDAGG_ADMIN_TOKEN" in result.stderr


def test_an_unknown_task_is_refused(service: Deployment) -> None:
    result = _admin(service, "models", "list", "--task", "nobody")
    assert result.exit_code == ExitCode.REFUSED
    assert "UNKNOWN_TASK" in result.stderr


def test_the_audit_log_of_the_rounds_is_intact_until_somebody_edits_it(
    service: Deployment, devices: Result, tmp_path: Path
) -> None:
    del devices
    log = service.data_dir / "audit.jsonl"
    result = CliRunner().invoke(app, ["admin", "audit", "verify", str(log), "--format", "json"])
    answer = json.loads(result.stdout)
    assert (answer["intact"], answer["key_checked"]) == (True, True)
    edited = tmp_path / "audit.jsonl"
    edited.write_text(log.read_text().replace('"accepted":3', '"accepted":2', 1))
    key = str(service.data_dir / "audit.key")
    result = CliRunner().invoke(app, ["admin", "audit", "verify", str(edited), "--key-file", key])
    assert result.exit_code == ExitCode.FAILURE
    assert "NOT intact" in result.stdout
    assert "line 1" in result.stderr


def test_devices_that_no_server_can_accept_fail(service: Deployment) -> None:
    arguments = ["device", "--server", service.grpc, "--task", "nobody", "--insecure"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == ExitCode.FAILURE
    assert "device-0000" in result.stderr


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.0.0.1:1", ExitCode.UNREACHABLE),
        ("gopher://127.0.0.1", ExitCode.UNREACHABLE),
        ("http://a:port", ExitCode.USAGE),
    ],
)
def test_a_server_that_cannot_be_reached_has_a_status_of_its_own(url: str, code: ExitCode) -> None:
    result = CliRunner().invoke(app, ["admin", "tasks", "list", "--url", url])
    assert result.exit_code == code


def _answering(status: int, content: str) -> AdminClient:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text=content))
    return AdminClient("http://somebody", None, transport=transport)


def test_another_kind_of_server_is_recognized() -> None:
    with _answering(200, "<html>") as client, pytest.raises(CliError, match="does not answer as"):
        client.tasks()
    with _answering(502, "<html>") as client, pytest.raises(CliError, match="answered 502"):
        client.tasks()


def test_among_several_tasks_one_must_be_named() -> None:
    task = {"task": "a", "phase": None, "published_rounds": 0, "num_rounds": 1, "model_version": 1}
    with _answering(200, json.dumps([task, {**task, "task": "b"}])) as client:
        assert client.only_task("b") == "b"
        with pytest.raises(CliError, match="a, b"):
            client.only_task(None)
