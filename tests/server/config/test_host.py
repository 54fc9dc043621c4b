"""What a machine does not have is told by its setting, and nothing is left behind."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.config import ConfigError, ServerConfig, parse_config
from server.config.host import AddressInUse, claim_host, require_free_addresses


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield one


def configured(folder: Path, **sections: dict[str, Any]) -> ServerConfig:
    listen = dict.fromkeys(("grpc", "http", "metrics"), "127.0.0.1:0")
    tree: dict[str, Any] = {
        "tls": {"insecure": True},
        "listen": listen | sections.pop("listen", {}),
        "store": {"data-dir": str(folder / "data")} | sections.pop("store", {}),
        "task": [{"name": "t", "initial-model": "m"}],
    }
    return parse_config(tree | sections, {})


@pytest.mark.parametrize("shared", [False, True])
def test_an_address_in_use_is_told_with_its_setting(
    tmp_path: Path, listener: socket.socket, shared: bool
) -> None:
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    config = configured(tmp_path, listen={"http": address})
    with pytest.raises(AddressInUse, match=f"^listen.http: {address} is in use by another"):
        claim_host(config, shared=shared)


def test_a_port_that_others_share_is_in_use_to_who_does_not(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        config = configured(tmp_path, listen={"grpc": f"127.0.0.1:{other.getsockname()[1]}"})
        require_free_addresses(config, shared=False)  # kept for us: nobody listens
        other.listen()
        require_free_addresses(config, shared=True)
        with pytest.raises(AddressInUse, match=r"^listen\.grpc: "):
            require_free_addresses(config, shared=False)


def test_everything_this_machine_does_not_have_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = configured(
        tmp_path,
        listen={"grpc": "192.0.2.1:50051", "metrics": "no-such-host.invalid:9090"},
        store={"data-dir": str(tmp_path / "file" / "data")},
        observability={"audit-log": str(tmp_path)},
    )
    with pytest.raises(ConfigError) as refused:
        claim_host(config, shared=True)
    told = [problem.partition(": ")[0] for problem in refused.value.problems]
    assert told == ["listen.grpc", "listen.metrics", "store.data-dir", "observability.audit-log"]


@pytest.mark.parametrize("audit_log", ["absent/audit.jsonl", "/proc/audit.jsonl"])
def test_an_audit_log_that_cannot_be_written_is_told(tmp_path: Path, audit_log: str) -> None:
    config = configured(tmp_path, observability={"audit-log": str(tmp_path / audit_log)})
    with pytest.raises(ConfigError, match=r"^observability\.audit-log: "):
        claim_host(config, shared=True)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    config = configured(tmp_path, store={"data-dir": "/proc/data"})
    with pytest.raises(ConfigError, match=r"^store\.data-dir: /proc/data: cannot write to /proc"):
        claim_host(config, shared=True)


def test_a_look_leaves_nothing_behind(tmp_path: Path) -> None:
    config = configured(tmp_path, observability={"audit-log": str(tmp_path / "audit.jsonl")})
    claim_host(config, shared=False)
    assert list(tmp_path.iterdir()) == []
