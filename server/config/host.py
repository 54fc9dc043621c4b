"""What settings ask of the machine: addresses to listen on, folders to write to."""

import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from server.config.findings import Findings
from server.config.formats import split_address
from server.config.holder_config import HolderConfig
from server.config.server_config import ServerConfig

Config = ServerConfig | HolderConfig

_LISTEN: Final = ("grpc", "enrollment", "http", "metrics")
_LOOPBACK_OF: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # where to connect to
_CONNECT_TIMEOUT_S: Final = 1.0


class AddressInUse(OSError):
    """Another process listens on an address of the configuration."""


def check_host(config: Config, findings: Findings) -> None:
    """Look whether this machine has the addresses, and lets the folders be written.

    An address that is in use is none of it: the service may run already.
    """
    for setting, address in _addresses(config):
        problem = _bind_problem(address)
        if problem is not None and problem.errno != errno.EADDRINUSE:
            findings.add(setting, f"{address}: {problem.strerror}")
    if isinstance(config, HolderConfig):
        check_folder("holder.data-dir", config.holder.data_dir, findings)
        return
    check_folder("store.data-dir", config.store.data_dir, findings)
    if config.observability.audit_log:
        _check_audit_log(Path(config.observability.audit_log), findings)


def require_free_addresses(config: Config, *, shared: bool) -> None:
    """Look whether nobody listens where a process is about to.

    Args:
        config: of that process.
        shared: whether others may listen there that let it, as workers of one service do.

    Raises:
        AddressInUse: naming each address with its setting.
    """
    busy = [
        f"{setting}: {address} is in use by another process"
        for setting, address in _addresses(config)
        if _is_bound(address) or (not shared and _answers(address))
    ]
    if busy:
        raise AddressInUse("; ".join(busy))


def claim_host(config: Config, *, shared: bool) -> None:
    """Look whether a process can have what it is about to take of this machine.

    Args:
        config, shared: as for `require_free_addresses`.

    Raises:
        ConfigError: naming each address that this machine does not have, and each folder that
            cannot be written.
        AddressInUse: as for `require_free_addresses`.
    """
    findings = Findings()
    check_host(config, findings)
    findings.refuse()
    require_free_addresses(config, shared=shared)


def _addresses(config: Config) -> Iterator[tuple[str, str]]:
    for name in _LISTEN:
        address: str = getattr(config.listen, name, "")
        if address:
            yield f"listen.{name}", address


def _is_bound(address: str) -> bool:
    problem = _bind_problem(address)
    return problem is not None and problem.errno == errno.EADDRINUSE


def _answers(address: str) -> bool:
    """Tell whether somebody listens there, though they would let others do so too."""
    host, port = split_address(address)
    there = _LOOPBACK_OF.get(host, host)
    try:
        socket.create_connection((there, port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _bind_problem(address: str) -> OSError | None:
    """Say why a process cannot have an address; None: it can. Nothing listens, not for a moment."""
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "SO_REUSEPORT"):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind((host, port))
    except OSError as error:
        return error
    return None


def _check_audit_log(path: Path, findings: Findings) -> None:
    setting = "observability.audit-log"
    if path.is_dir():
        findings.add(setting, f"{path}: is a folder")
    elif not path.parent.is_dir():
        findings.add(setting, f"{path.parent}: there is no such folder")
    elif path.exists() and not os.access(path, os.W_OK):
        findings.add(setting, f"{path}: cannot be written")
    else:
        check_folder(setting, path.parent, findings)


def check_folder(setting: str, folder: Path, findings: Findings) -> None:
    """Look whether the folder can be written, or be made; leave nothing behind."""
    there = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        findings.add(setting, f"{folder}: {there} is no folder")
        return
    try:
        probe = tempfile.mkdtemp(prefix=".fedagg-check-", dir=there)
    except OSError as error:
        findings.add(setting, f"{folder}: cannot write to {there}: {error.strerror}")
        return
    with contextlib.suppress(OSError):
        Path(probe).rmdir()
