"""`fedagg share-holder`: from keys to a committee to a holder that serves."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from click.testing import Result
from typer.testing import CliRunner

from cli.exit_codes import ExitCode
from cli.main import app
from protos.fedagg.v1 import share_holder_pb2 as pb
from protos.fedagg.v1.share_holder_pb2_grpc import ShareHolderStub
from security.certificates.credentials import create_authority
from security.shared_round.keys.holder_keys import HolderSecrets
from security.shared_round.terms.committee import load_committee

DEADLINE_S = 30.0


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["share-holder", *map(str, arguments)])


def make_committee(folder: Path, holders: int = 3) -> Path:
    identities = [folder / f"identity-{index}.json" for index in range(1, holders + 1)]
    for index, identity in enumerate(identities, start=1):
        result = run(
            *("keys", "--out", folder / f"keys-{index}.json", "--index", index),
            *("--name", f"holder {index}", "--address", f"127.0.0.1:{5000 + index}"),
            *("--identity", identity),
        )
        assert result.exit_code == ExitCode.OK, result.output
    committee = folder / "committee.json"
    result = run("committee", "--threshold", 2, "--out", committee, *reversed(identities))
    assert result.exit_code == ExitCode.OK, result.output
    return committee


def write_config(folder: Path, port: int) -> Path:
    (folder / "ca.pem").write_bytes(
        create_authority(name="devices", now_s=1.8e9, valid_for_s=1e6).certificate_pem
    )
    config = folder / "share-holder.toml"
    settings = f"""
        tls = {{insecure = true}}
        listen = {{grpc = "127.0.0.1:{port}"}}
        [holder]
        index = 2
        committee = "{folder}/committee.json"
        keys = "{folder}/keys-2.json"
        device-ca = "{folder}/ca.pem"
        data-dir = "{folder}/data"
        """
    config.write_text(settings)
    return config


def test_a_committee_is_made_of_the_holders_own_keys(tmp_path: Path) -> None:
    committee = load_committee(make_committee(tmp_path).read_bytes())
    assert committee.threshold == 2
    for index, identity in enumerate(committee.holders, start=1):
        secrets = HolderSecrets.from_json((tmp_path / f"keys-{index}.json").read_bytes())
        assert secrets.owns(identity)
        assert (tmp_path / f"keys-{index}.json").stat().st_mode & 0o077 == 0


def test_keys_are_never_written_over_others(tmp_path: Path) -> None:
    out = tmp_path / "keys.json"
    arguments = ("keys", "--out", out, "--index", 1, "--name", "a", "--address", "h:1")
    first = run(*arguments)
    assert json.loads(first.stdout)["index"] == 1
    before = out.read_bytes()
    assert run(*arguments).exit_code == ExitCode.FAILURE
    assert out.read_bytes() == before
    for seed in json.loads(before).values():
        assert str(seed) == "1" or str(seed) not in first.stdout


def test_a_committee_of_what_is_no_identity_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "identity.json"
    wrong.write_text("[]")
    result = run("committee", "--threshold", 2, "--out", tmp_path / "c.json", wrong, wrong)
    assert result.exit_code == ExitCode.FAILURE
    assert not (tmp_path / "c.json").exists()


@pytest.mark.process
def test_keys_of_another_holder_are_a_wrong_configuration(tmp_path: Path) -> None:
    make_committee(tmp_path)
    config = write_config(tmp_path, 0)
    config.write_text(config.read_text().replace("index = 2", "index = 1"))
    command = [sys.executable, "-m", "cli.main", "share-holder", "serve", "--config", str(config)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == ExitCode.CONFIG
    assert "holds other keys than holder 1 has in" in ended.stderr


@pytest.mark.process
@pytest.mark.parametrize("module", ["cli.main share-holder serve", "server.holder.process"])
def test_a_holder_serves_until_it_is_told_to_stop(tmp_path: Path, module: str) -> None:
    make_committee(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", *module.split(), "--config", str(write_config(tmp_path, port))]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        described = asyncio.run(describe(port))
        assert described.holder == 2
        assert not described.has_keys
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == ExitCode.OK


@pytest.mark.process
def test_a_process_tells_its_supervisor_when_it_serves(tmp_path: Path) -> None:
    make_committee(tmp_path)
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "server.holder.process"]
    command += ["--config", str(write_config(tmp_path, 0)), "--ready-fd", str(writer)]
    command += ["--log-file", str(tmp_path / "log")]
    with subprocess.Popen(command, pass_fds=(writer,)) as process:
        assert os.read(reader, 1) == b"\n"
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    os.close(reader)
    os.close(writer)
    assert "holder_started" in (tmp_path / "log").read_text()


async def describe(port: int) -> pb.HolderDescription:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = await ShareHolderStub(channel).Describe(
            pb.DescribeRequest(), wait_for_ready=True, timeout=DEADLINE_S
        )
    assert isinstance(answer, pb.HolderDescription)
    return answer
