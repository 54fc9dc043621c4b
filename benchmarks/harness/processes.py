"""Processes under measurement: started, told apart, and stopped."""

import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, Self

import psutil

from monitoring.process_memory import PeakMemory
from server.processes.child_process import tied_to_parent
from server.processes.supervisor import worker_environment

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 20.0
ROOT: Final = Path(__file__).resolve().parents[2]
PEERS_PYTHON: Final = ROOT / ".venv-peers" / "bin" / "python"
"""The interpreter that has the libraries which are only compared with; `make peers` makes it."""

_IS_LINUX: Final = platform.system() == "Linux"
_POLL_S: Final = 0.005
_SAMPLE_S: Final = 0.05
_LAST_WORDS: Final = 2000  # characters


class ModuleProcess:
    """A Python module that runs in the environment of a coordinator and ends with this process.

    Args:
        module: run as `python -m`.
        arguments: of it.
        environment: set in addition.
        stdin, stdout, stderr: as `subprocess.Popen` takes them.
    """

    def __init__(  # noqa: PLR0913  # streams are named as they are elsewhere
        self,
        module: str,
        arguments: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: IO[bytes] | None = None,
    ) -> None:
        self.module = module
        self.process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603  # our own command
            tied_to_parent((sys.executable, "-m", module, *arguments)),
            env={
                **os.environ,
                **worker_environment(),
                **(environment or {}),
                "PYTHONPATH": str(ROOT),
            },
            start_new_session=True,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def stop(self) -> None:
        """Ask it to end, and wait; it is killed where it does not."""
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class TalkingProcess(ModuleProcess):
    """A module that reads and writes lines on its standard streams; killed at the end."""

    def __init__(self, module: str, arguments: Sequence[str] = ()) -> None:
        super().__init__(module, arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def say(self, line: str) -> None:
        """Write a line to it."""
        if self.process.stdin is not None:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()

    def hear(self) -> str:
        """Wait for its next line.

        Raises:
            RuntimeError: if it ended instead.
        """
        line = self.process.stdout.readline() if self.process.stdout is not None else b""
        if not line:
            msg = f"{self.module} ended early; its own words are on standard error"
            raise RuntimeError(msg)
        return line.decode()

    def stop(self) -> None:
        """End it, whatever it is doing."""
        self.process.kill()
        self.process.communicate()


class ServerProcess(ModuleProcess):
    """A module that serves, and says so in a JSON line of its log, on standard error.

    Args:
        module, arguments, environment: as above.
        ready: the event that tells that it serves.

    Raises:
        RuntimeError: if it ends before, or takes too long.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str] = (),
        *,
        ready: str = "serving",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `stop`
        super().__init__(
            module,
            arguments,
            environment=environment,
            stderr=self._log,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not any(event.get("event") == ready for event in self.events()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = self._words()[-_LAST_WORDS:]
                self.stop()
                msg = f"{module} did not serve (status {self.process.returncode}): {said}"
                raise RuntimeError(msg)
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Ask it to end, and wait; its log is gone with it."""
        super().stop()
        self._log.close()

    def events(self) -> Iterator[Mapping[str, object]]:
        """Read what it logged so far."""
        for line in self._words().splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    yield event

    def children(self) -> dict[str, int]:
        """Name the processes that it keeps running, and those that these started in turn."""
        found = {
            str(event["name"]): int(str(event["pid"]))
            for event in self.events()
            if event.get("event") == "process_started"
        }
        others = {child.pid for child in psutil.Process(self.pid).children(recursive=True)}
        others -= set(found.values())
        return found | {f"other {pid}": pid for pid in sorted(others)}

    def _words(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")


@contextlib.contextmanager
def watched_memory(pids: Callable[[], Iterable[int]]) -> Iterator[PeakMemory]:
    """Sample the memory of processes for as long as the block."""
    memory, is_over = PeakMemory(pids), threading.Event()

    def watch() -> None:
        while not is_over.wait(_SAMPLE_S):
            memory.sample()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield memory
    finally:
        is_over.set()
        watcher.join()


def peak_resident_bytes(pid: int) -> int:
    """Read the most that a process ever had; what it has now, where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return int(psutil.Process(pid).memory_info().rss)
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def process_cpu_s(pid: int) -> float:
    """Read the processor seconds of a process of this user since it started."""
    if _IS_LINUX:
        # The kernel's name for the clock that clock_getcpuclockid(3) returns: nanoseconds, where
        # the counters in /proc tick in hundredths of a second.
        return time.clock_gettime(~pid << 3 | 2)
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def free_address() -> str:
    """Return a loopback host:port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
