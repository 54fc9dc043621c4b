"""Processes under measurement: started, told apart, and stopped."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import psutil

from server.processes.child_process import tied_to_parent
from server.processes.supervisor import worker_environment

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 20.0
ROOT: Final = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a process has used since it started."""

    cpu_s: float
    rss_bytes: int
    peak_rss_bytes: int  # where the system does not tell (not Linux), the present size

    @classmethod
    def of(cls, pid: int) -> Self:
        """Read the counters of a process that runs."""
        process = psutil.Process(pid)
        times = process.cpu_times()
        rss = process.memory_info().rss
        return cls(
            cpu_s=times.user + times.system,
            rss_bytes=rss,
            peak_rss_bytes=_high_water_mark(pid) or rss,
        )


class ServerProcess:
    """A Python module that runs as a server, in the environment of a coordinator.

    Args:
        module: run as `python -m`; must write a byte to its `--ready-fd` once it serves.
        arguments: its further arguments.
        environment: set in addition to the coordinators' environment.
    """

    def __init__(
        self, module: str, arguments: Sequence[str], *, environment: Mapping[str, str]
    ) -> None:
        reader, writer = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603  # our own command
                tied_to_parent(
                    (sys.executable, "-m", module, *arguments, "--ready-fd", str(writer))
                ),
                stdin=subprocess.DEVNULL,
                env={**os.environ, **worker_environment(), **environment, "PYTHONPATH": str(ROOT)},
                pass_fds=(writer,),
                start_new_session=True,
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        # End of file means that the process ended: it holds the only other end.
        with os.fdopen(reader, "rb", buffering=0) as ready:
            if not ready.read(1):
                self.stop()
                msg = f"{module} ended with status {self._process.returncode} before it served"
                raise RuntimeError(msg)

    @property
    def pid(self) -> int:
        return self._process.pid

    def usage(self) -> Usage:
        """What the process has used so far."""
        return Usage.of(self.pid)

    def stop(self) -> None:
        """Ask it to end, and wait; it is killed where it does not."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def server_process(
    module: str, arguments: Sequence[str], *, environment: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """Run a `ServerProcess` for as long as the block."""
    process = ServerProcess(module, arguments, environment=environment or {})
    try:
        yield process
    finally:
        process.stop()


def free_address() -> str:
    """Return a loopback host:port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def _high_water_mark(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
