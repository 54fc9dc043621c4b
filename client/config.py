"""The client's configuration: where the servers are, who the device is, how patient it is."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from client.errors import ClientConfigError
from client.sharing_config import SharingConfig
from client.transport.retry import RetryPolicy
from protos.wire import DEVICE_ID, MAX_CHUNK_BYTES, MAX_WAIT_S, TASK_NAME

KIB: Final = 1024
MIB: Final = 1024 * KIB

_HOST_PORT: Final = re.compile(r"(?:dns:///)?(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})")
_UNIX: Final = re.compile(r"unix:.+")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files for TLS; the client certificate and its key come together or not at all.

    Attributes:
        root_ca: certificates that may sign the server's; None: those built into gRPC.
        certificate: the device's certificate chain.
        private_key: the key of `certificate`.
        server_name: name expected in the server's certificate; None: the host of the address.
    """

    root_ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise ClientConfigError("certificate and private_key must be given together")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """Everything a `MobileClient` has to know before it starts.

    Attributes:
        servers: "host:port", "dns:///host:port" (all its addresses are used in turn) or
            "unix:path". With several, the client moves on to the next when one is lost.
        task: learning task to serve, 1 to 64 characters of [a-z0-9-], the first not a hyphen.
        device_id: 1 to 128 characters of [A-Za-z0-9_.-]; the certificate's where there is one.
        tls: PEM files; required unless `insecure`.
        insecure: speak plain text. For tests and for networks that encrypt by themselves.
        call_timeout_s: longest wait for a short call, beyond what the server may hold it.
        stall_timeout_s: a transfer in which nothing moves this long is broken off and resumed.
        max_wait_s: how long the server may hold a check-in, 0 to 60.
        chunk_bytes: payload bytes per message of an upload, 256 KiB to 1 MiB.
        inline_max_bytes: payloads up to this size travel in one message, 0 to 1 MiB.
        max_model_bytes: larger models are refused before any memory is taken for them.
        deadline_margin_s: the round counts as over this much before its time to live is, for
            the time the assignment was under way; training is asked to stop once more as much
            before that.
        progress_interval_s: while training, ask this often whether the round still waits; None:
            never ask.
        retry: backoff of every call.
        min_device_noise_multiplier: least noise that this device adds to what a server sees, in
            clipping norms; plain rounds that ask for less are refused. 0: what the server says.
        sharing: how updates are sealed to share holders; None: shared rounds are refused.
        state_dir: folder for what compression left out of the updates, to be sent later; its
            files can be read by their owner only, and are as sensitive as the updates. Devices
            may share it, processes of one device not. None: kept in memory.
    """

    servers: tuple[str, ...]
    task: str
    device_id: str
    tls: TlsFiles | None = None
    insecure: bool = False
    call_timeout_s: float = 20.0
    stall_timeout_s: float = 30.0
    max_wait_s: float = 30.0
    chunk_bytes: int = 512 * KIB
    inline_max_bytes: int = 64 * KIB
    max_model_bytes: int = 2 * KIB * MIB
    deadline_margin_s: float = 0.5
    progress_interval_s: float | None = 30.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    min_device_noise_multiplier: float = 0.0
    sharing: SharingConfig | None = None
    state_dir: Path | None = None

    def __post_init__(self) -> None:
        self._check_identity()
        self._check_security()
        self._check_limits()

    def _check_identity(self) -> None:
        # A lone string passes for a tuple of its characters where nobody checks types.
        servers: object = self.servers
        if not isinstance(servers, tuple) or not servers:
            raise ClientConfigError(f"servers={self.servers!r} must be a tuple of addresses")
        for server in self.servers:
            match = _HOST_PORT.fullmatch(server)
            if not _UNIX.fullmatch(server) and (not match or not 1 <= int(match[1]) <= 65_535):
                raise ClientConfigError(
                    f"server {server!r} must be 'host:port', 'dns:///host:port' or 'unix:path'"
                )
        if not TASK_NAME.fullmatch(self.task):
            raise ClientConfigError(f"task={self.task!r} must match {TASK_NAME.pattern}")
        if not DEVICE_ID.fullmatch(self.device_id):
            raise ClientConfigError(f"device_id={self.device_id!r} must match {DEVICE_ID.pattern}")

    def _check_security(self) -> None:
        if self.insecure and self.tls:
            raise ClientConfigError("insecure=True and tls contradict each other")
        if not self.insecure and not self.tls:
            raise ClientConfigError("tls is missing; insecure=True sends everything in plain text")
        has_identity = self.tls is not None and self.tls.certificate is not None
        if self.sharing and self.sharing.certificate is None and not has_identity:
            raise ClientConfigError("sharing needs a certificate: its own, or the one of tls")

    def _check_limits(self) -> None:
        ranges = (
            ("call_timeout_s", self.call_timeout_s, 0.001, math.inf),
            ("stall_timeout_s", self.stall_timeout_s, 0.001, math.inf),
            ("max_wait_s", self.max_wait_s, 0, MAX_WAIT_S),
            ("chunk_bytes", self.chunk_bytes, 256 * KIB, MAX_CHUNK_BYTES),
            ("inline_max_bytes", self.inline_max_bytes, 0, MAX_CHUNK_BYTES),
            ("max_model_bytes", self.max_model_bytes, 1, math.inf),
            ("deadline_margin_s", self.deadline_margin_s, 0, math.inf),
            ("progress_interval_s", self.progress_interval_s, 0.001, math.inf),
            ("min_device_noise_multiplier", self.min_device_noise_multiplier, 0, 1e6),
        )
        for name, value, low, high in ranges:
            if value is not None and not low <= value <= high:
                raise ClientConfigError(f"{name}={value} must lie in [{low}, {high}]")
