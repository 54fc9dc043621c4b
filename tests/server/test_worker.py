"""The coordinator process: it starts, tells that it serves, stops in order, and fails clearly."""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from server.processes.worker_process import EXIT_CONFIG, EXIT_FAILURE
from simulation.models import initial_weights
from updates.vectors import encode_model

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0  # only a hanging test takes that long


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.fixture
def http_port() -> int:
    return _free_port()


@pytest.fixture
def config(tmp_path: Path, http_port: int) -> Path:
    model = tmp_path / "m.safetensors"
    model.write_bytes(encode_model(initial_weights("digits", seed=0)))
    path = tmp_path / "server.toml"
    settings = f"""
        listen = {{grpc = "127.0.0.1:0", http = "127.0.0.1:{http_port}", metrics = "127.0.0.1:0"}}
        tls = {{insecure = true}}
        store = {{data-dir = "{tmp_path}/data"}}
        [[task]]
        name = "worker-test"
        initial-model = "{model}"
        """
    path.write_text(settings)
    return path


@contextmanager
def _worker(
    *arguments: str, pass_fds: tuple[int, ...] = (), environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "server.worker", *arguments],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        pass_fds=pass_fds,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _failure(*arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    with _worker(*arguments, environment=environment) as process:
        _, text = process.communicate(timeout=DEADLINE_S)
        return process.returncode, text


def test_it_tells_that_it_serves_and_stops_in_order(
    config: Path, http_port: int, redis_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    read_fd, write_fd = os.pipe()
    arguments = ["--config", str(config), "--store-url", redis_url, "--log-file", str(log)]
    try:
        with _worker(*arguments, "--ready-fd", str(write_fd), pass_fds=(write_fd,)) as process:
            readable, _, _ = select.select([read_fd], [], [], DEADLINE_S)
            assert readable, log.read_text()
            url = f"http://127.0.0.1:{http_port}/ready"
            answer = httpx.get(url, trust_env=False, timeout=DEADLINE_S)
            assert answer.json()["ready"] is True
            process.send_signal(signal.SIGTERM)
            _, text = process.communicate(timeout=DEADLINE_S)
            assert process.returncode == 0
            assert text == ""
    finally:
        os.close(read_fd)
        os.close(write_fd)
    assert '"server_started"' in log.read_text()
    assert '"server_stopped"' in log.read_text()


def test_a_wrong_configuration_is_a_line_a_problem_and_a_status_of_its_own(
    tmp_path: Path,
) -> None:
    path = tmp_path / "server.toml"
    path.write_text("[listn]\ngrpc = 3")
    status, text = _failure("--config", str(path))
    assert status == EXIT_CONFIG
    assert text.splitlines() == [
        "fedagg: listn: unknown key, did you mean listen?",
        "fedagg: tls: give certificate, private-key and client-ca, or set insecure = true",
        "fedagg: task: at least one [[task]] must be given",
    ]


def test_a_rule_that_does_not_exist_is_a_wrong_configuration(config: Path, redis_url: str) -> None:
    config.write_text(f'{config.read_text()}\n[task.aggregation]\nrule = "nonsense"\n')
    status, text = _failure("--config", str(config), "--store-url", redis_url)
    assert status == EXIT_CONFIG
    assert "nonsense" in text


def test_the_embedded_store_is_somebody_elses_to_start(config: Path) -> None:
    status, text = _failure("--config", str(config))
    assert status == EXIT_CONFIG
    assert "--store-url" in text


def test_an_address_it_cannot_have_is_a_failure(config: Path, redis_url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for key in ("GRPC", "HTTP"):
            environment = {f"FEDAGG__LISTEN__{key}": address}
            status, text = _failure(
                "--config", str(config), "--store-url", redis_url, environment=environment
            )
            assert status == EXIT_FAILURE, text
            assert text.splitlines()[-1].startswith("fedagg: ")
