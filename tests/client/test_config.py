"""What a configuration refuses, and how it says so."""

from pathlib import Path

import pytest

from client.config import ClientConfig, TlsFiles
from client.errors import ClientConfigError
from client.transport.connection import ServerPool


def config(**changes: object) -> ClientConfig:
    fields = {"servers": ("127.0.0.1:50051",), "task": "t", "device_id": "d", "insecure": True}
    return ClientConfig(**{**fields, **changes})  # type: ignore[arg-type]  # wrong types on purpose


@pytest.mark.parametrize(
    "server",
    ["127.0.0.1:50051", "host.example-1:1", "[::1]:50051", "dns:///host:65535", "unix:/run/x.sock"],
)
def test_addresses_that_grpc_understands_are_accepted(server: str) -> None:
    assert config(servers=(server, "other:2")).servers == (server, "other:2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"servers": ()}, "servers="),
        ({"servers": "127.0.0.1:50051"}, "must be a tuple"),
        ({"servers": ("host",)}, "server 'host'"),
        ({"servers": ("host:0",)}, "host:0"),
        ({"servers": ("host:65536",)}, "host:65536"),
        ({"servers": ("http://host:80",)}, "http"),
        ({"task": "Digits"}, "task='Digits'"),
        ({"task": "a" * 65}, "task="),
        ({"device_id": "a b"}, "device_id='a b'"),
        ({"device_id": ""}, "device_id="),
        ({"insecure": False}, "tls is missing"),
        ({"tls": TlsFiles()}, "contradict"),
        ({"call_timeout_s": 0.0}, "call_timeout_s=0.0"),
        ({"call_timeout_s": float("nan")}, "call_timeout_s=nan"),
        ({"stall_timeout_s": -1.0}, "stall_timeout_s"),
        ({"max_wait_s": 60.5}, "max_wait_s"),
        ({"chunk_bytes": 256 * 1024 - 1}, "chunk_bytes"),
        ({"chunk_bytes": 1024 * 1024 + 1}, "chunk_bytes"),
        ({"inline_max_bytes": -1}, "inline_max_bytes"),
        ({"inline_max_bytes": 1024 * 1024 + 1}, "inline_max_bytes"),
        ({"max_model_bytes": 0}, "max_model_bytes"),
        ({"deadline_margin_s": -0.1}, "deadline_margin_s"),
        ({"progress_interval_s": 0.0}, "progress_interval_s"),
    ],
)
def test_a_bad_field_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ClientConfigError, match=message):
        config(**changes)


def test_certificate_and_key_come_together() -> None:
    with pytest.raises(ClientConfigError, match="together"):
        TlsFiles(certificate=Path("cert.pem"))


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "ca.pem"
    tls = TlsFiles(root_ca=missing)
    with pytest.raises(ClientConfigError, match=r"ca\.pem"):
        ServerPool(config(tls=tls, insecure=False))
