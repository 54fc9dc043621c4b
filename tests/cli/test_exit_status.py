"""Exit statuses of real processes are those that `cli.exit_codes` documents."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cli.exit_codes import ExitCode
from updates.vectors import encode_model

pytestmark = pytest.mark.process
DEADLINE_S = 60.0


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", *map(str, arguments)]


def ended(*arguments: object) -> tuple[int, str]:
    done = subprocess.run(
        command(*arguments),
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=DEADLINE_S,
    )
    return done.returncode, done.stderr


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "m.safetensors").write_bytes(encode_model({"w": np.zeros(3, np.float32)}))
    path = tmp_path / "server.toml"
    settings = f"""
        tls = {{insecure = true}}
        listen = {{grpc = "127.0.0.1:0", http = "127.0.0.1:0", metrics = "127.0.0.1:0"}}
        store = {{data-dir = "{tmp_path}/data"}}
        [[task]]
        name = "t"
        initial-model = "{tmp_path}/m.safetensors"
        """
    path.write_text(settings)
    return path


def test_wrong_arguments() -> None:
    assert ended("cli.main", "serve")[0] == ExitCode.USAGE
    assert ended("server.worker")[0] == ExitCode.USAGE


@pytest.mark.parametrize(
    "arguments",
    [
        ("cli.main", "config", "check"),
        ("cli.main", "serve", "--config"),
        ("server.worker", "--config"),
        ("cli.main", "share-holder", "serve", "--config"),
        ("server.holder.process", "--config"),
    ],
)
def test_a_wrong_configuration(config: Path, arguments: tuple[str, ...]) -> None:
    is_holder = "holder" in "".join(arguments)
    text = config.read_text()
    config.write_text("[holder]\nindx = 1\n" if is_holder else text.replace("true", "maybe"))
    status, told = ended(*arguments, config)
    assert status == ExitCode.CONFIG
    assert ("holder.indx: unknown key" if is_holder else "not TOML: invalid value") in told


def test_what_only_the_worker_finds_is_a_wrong_configuration_of_the_service(config: Path) -> None:
    (config.parent / "m.safetensors").write_bytes(b"no model")
    status, told = ended("cli.main", "serve", "--config", config)
    assert status == ExitCode.CONFIG
    assert "task[1].initial-model: " in told


@pytest.mark.parametrize("module", ["cli.main serve", "server.worker"])
def test_a_port_in_use_is_a_failure(config: Path, module: str, redis_url: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        text = config.read_text().replace('http = "127.0.0.1:0"', f'http = "{address}"')
        config.write_text(text)
        more = ["--store-url", redis_url] if module == "server.worker" else []
        status, told = ended(*module.split(), "--config", config, *more)
    assert status == ExitCode.FAILURE
    assert f"listen.http: {address} is in use by another process" in told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption(tmp_path: Path, number: signal.Signals) -> None:
    pipe = tmp_path / "server.toml"
    os.mkfifo(pipe)
    # The pipe opens as soon as the process reads it; it then waits for what is never written.
    with (
        subprocess.Popen(
            command("cli.main", "config", "check", pipe), stderr=subprocess.PIPE, text=True
        ) as process,
        pipe.open("wb"),
    ):
        process.send_signal(number)
        told = process.communicate(timeout=DEADLINE_S)[1]
    assert process.returncode == ExitCode.INTERRUPTED
    assert told == "fedagg: interrupted\n"
