"""`fedagg serve` keeps its processes running, and ends with all of them."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from cli.exit_codes import ExitCode
from cli.main import app
from tests.cli.deployment import DEADLINE_S, Deployment, deployed

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("serve"), workers=2, num_rounds=2) as running:
        yield running


def test_every_worker_is_in_the_metrics_whichever_answers(service: Deployment) -> None:
    text = service.get(service.metrics_url).text
    for name in ("coordinator-1", "coordinator-2"):
        assert f'process_resident_memory_bytes{{pid="{service.pid_of(name)}"}}' in text


@pytest.mark.parametrize("name", ["coordinator-1", "store"])
def test_a_killed_process_is_started_again_and_the_service_answers(
    service: Deployment, name: str
) -> None:
    before = service.pid_of(name)
    os.kill(before, signal.SIGKILL)
    assert psutil.pid_exists(service.pid_of(name, not_in=(before,)))
    assert service.get(f"{service.url}/ready").json()["ready"] is True


def test_the_metrics_forget_a_dead_worker(service: Deployment) -> None:
    before = service.pid_of("coordinator-2")
    os.kill(before, signal.SIGKILL)
    after = service.pid_of("coordinator-2", not_in=(before,))
    text = service.get(service.metrics_url).text
    assert f'process_resident_memory_bytes{{pid="{after}"}}' in text
    assert f'{{pid="{before}"}}' not in text


def test_sigterm_ends_everything_in_order(tmp_path: Path) -> None:
    with deployed(tmp_path, workers=1, num_rounds=1) as running:
        children = psutil.Process(running.process.pid).children(recursive=True)
        assert len(children) == 3
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(DEADLINE_S) == ExitCode.OK
        assert not any(child.is_running() for child in children)
    ended = [(entry["name"], entry["status"]) for entry in running.events("process_exited")]
    assert ended[0] == ("coordinator-1", 0)
    assert sorted(ended[1:]) == [("store", 0), ("template", 0)]


def test_a_port_in_use_is_told_with_its_setting(service: Deployment) -> None:
    config = service.data_dir.parent / "server.toml"
    result = CliRunner().invoke(app, ["serve", "--config", str(config)])
    assert result.exit_code == ExitCode.FAILURE
    assert f"listen.grpc: {service.grpc} is in use by another process" in result.stderr


def test_a_data_folder_in_use_is_told_with_its_holder(
    service: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = service.data_dir.parent / "server.toml"
    for name in ("GRPC", "HTTP", "METRICS"):
        monkeypatch.setenv(f"FEDAGG__LISTEN__{name}", "127.0.0.1:0")
    result = CliRunner().invoke(app, ["serve", "--config", str(config)])
    assert result.exit_code == ExitCode.FAILURE
    assert str(service.process.pid) in result.stderr


def test_a_worker_that_cannot_start_is_told(tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    settings = f"""
        tls = {{insecure = true}}
        store = {{data-dir = "{tmp_path}/data"}}
        [[task]]
        name = "t"
        initial-model = "{tmp_path}/absent"
        """
    config.write_text(settings)
    result = CliRunner().invoke(app, ["serve", "--config", str(config)])
    assert result.exit_code == ExitCode.CONFIG
    assert "coordinator-1 ended with status 3" in result.stderr


def test_a_wrong_configuration_is_told_before_anything_starts(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["serve", "--config", str(tmp_path / "absent.toml")])
    assert result.exit_code == ExitCode.CONFIG
