"""What a coordinator's files and stores cannot be is told at once, and the rest opens."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from cli.main import app
from server.config import ConfigError, parse_config
from server.preparation import PreparedServer, prepare_server
from server.processes.thread_pool import Workers
from simulation.models import initial_weights
from updates.vectors import encode_model


@pytest.fixture(scope="module")
def accountants() -> Iterator[Workers]:
    workers = Workers("accountant", threads=1)
    yield workers
    workers.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and two installations' keys."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "model.safetensors").write_bytes(encode_model(initial_weights("digits", seed=0)))
    for name in ("ours", "theirs"):
        out = str(folder / name)
        command = ["admin", "create-ca", "--out", out, "--server-name", "localhost"]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "locked.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    (folder / "empty.pem").write_bytes(b"")
    whole = (folder / "ours/server.pem").read_bytes()
    (folder / "partial.pem").write_bytes(whole[: len(whole) // 3])
    return folder


@pytest.fixture
def prepared(files: Path, tmp_path: Path, accountants: Workers) -> Any:
    """Opens settings with TLS and enrollment, some of them changed; files are named in braces."""

    def open_with(**changes: Any) -> PreparedServer:
        tree: dict[str, Any] = {
            "listen": dict.fromkeys(("grpc", "enrollment", "http", "metrics"), "127.0.0.1:0"),
            "tls": {
                "certificate": "{ours/server.pem}",
                "private-key": "{ours/server-key.pem}",
                "client-ca": "{ours/ca.pem}",
            },
            "enrollment": {
                "ca-certificate": "{ours/ca.pem}",
                "ca-private-key": "{ours/ca-key.pem}",
                "token-key": (files / "ours/enrollment.key").read_text().strip(),
            },
            "store": {"data-dir": str(tmp_path / "data")},
            "task": [{"name": "t", "initial-model": str(files / "model.safetensors")}],
        }
        for section, keys in changes.items():
            tree[section] = tree[section] | {
                key.replace("_", "-"): value for key, value in keys.items()
            }
        for section in ("tls", "enrollment"):
            tree[section] = {
                key: str(files / value.strip("{}")) if str(value).startswith("{") else value
                for key, value in tree[section].items()
            }
        return prepare_server(parse_config(tree, {}), accountants=accountants, now_s=time.time())

    return open_with


def test_files_that_belong_together_are_opened(prepared: Any, files: Path) -> None:
    server = prepared()
    assert server.tls.credentials.certificate_pem == (files / "ours/server.pem").read_bytes()
    assert server.tls.client_ca == (files / "ours/ca.pem").read_bytes()
    assert server.authority is not None
    assert [task.info.name for task in server.tasks] == ["t"]
    assert "PRIVATE" not in repr(server)


@pytest.mark.parametrize(
    ("section", "changes", "told"),
    [
        ("tls", {"certificate": "{absent}"}, "tls.certificate: {}/absent: No such file"),
        ("tls", {"certificate": "{ours}"}, "tls.certificate: {}/ours: Is a directory"),
        ("tls", {"certificate": "{empty.pem}"}, "tls.certificate: {}/empty.pem: is empty"),
        ("tls", {"certificate": "{partial.pem}"}, "tls.certificate: {}/partial.pem: holds"),
        (
            "tls",
            {"certificate": "{ours/server-key.pem}"},
            "tls.certificate: {}/ours/server-key.pem: holds no PEM certificate",
        ),
        (
            "tls",
            {"private_key": "{ours/server.pem}"},
            "tls.private-key: {}/ours/server.pem: holds no PEM private key",
        ),
        (
            "tls",
            {"private_key": "{locked.pem}"},
            "tls.private-key: {}/locked.pem: the key is protected by a password",
        ),
        (
            "tls",
            {"private_key": "{theirs/server-key.pem}"},
            "tls.private-key: {0}/theirs/server-key.pem: is not the key of tls.cert",
        ),
        ("tls", {"client_ca": "{partial.pem}"}, "tls.client-ca: {}/partial.pem: holds"),
        (
            "tls",
            {"client_ca": "{theirs/ca.pem}"},
            "enrollment.ca-certificate: is not trusted by tls.client-ca",
        ),
        (
            "enrollment",
            {"ca_private_key": "{theirs/ca-key.pem}"},
            "enrollment.ca-private-key: {}/theirs/ca-key.pem: is not the key of",
        ),
        ("store", {"url": "redis://h?nonsense=1"}, "store.url: holds an option that no"),
        ("store", {"blobs": "nonsense://bucket"}, "store.blobs: cannot be used here"),
        ("store", {"blobs": "/proc/blobs"}, "store.blobs: /proc/blobs: cannot write to /proc"),
        ("listen", {"grpc": "192.0.2.1:1"}, "listen.grpc: 192.0.2.1:1: Cannot assign"),
    ],
)
def test_what_cannot_be_used_is_told_once(
    prepared: Any, files: Path, section: str, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        prepared(**{section: changes})
    (problem,) = refused.value.problems
    assert problem.startswith(told.format(files))


def test_problems_of_all_parts_are_told_at_once(prepared: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        prepared(
            tls={"certificate": "{absent}", "client_ca": "{empty.pem}"},
            enrollment={"ca_certificate": "{absent}"},
            store={"url": "redis://h?nonsense=1"},
        )
    assert [problem.partition(": ")[0] for problem in refused.value.problems] == [
        "store.url",
        "tls.certificate",
        "tls.client-ca",
        "enrollment.ca-certificate",
    ]
