"""A population of devices as operating system processes.

Twenty devices that each load the client cost many seconds of CPU. A fleet loads it once, in a
supervisor process, and forks the devices from there; see `simulation.fleet.forking`.
"""

import contextlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Generic, Self, TypeVar, cast

from simulation.errors import FleetError
from simulation.fleet.training_places import FleetOrder, prepare_nothing, spread

ItemT = TypeVar("ItemT")

_SUPERVISOR_GRACE_S: Final = 5.0  # beyond the processes' own grace
# One thread each: there are more processes than cores, and a library's thread pool would make
# the supervisor unfit for forking.
_SINGLE_THREADED: Final = {
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfig:
    """How a fleet is run.

    Attributes:
        max_processes: processes at most, from 1; more items than that share processes.
        grace_s: seconds between asking a process to end and killing it, >= 0.
        log_path: file that takes what the processes write to standard error, appended to;
            absent: it goes to the caller's.
        ends_together: whether a process that fails ends the others.
        pass_fds: file descriptors that every process inherits.
        waits: whether the processes start only when `release` is called.
    """

    max_processes: int = 32
    grace_s: float = 10.0
    log_path: Path | None = None
    ends_together: bool = False
    pass_fds: tuple[int, ...] = ()
    waits: bool = False

    def __post_init__(self) -> None:
        if self.max_processes < 1 or not self.grace_s >= 0.0:
            message = (
                f"max_processes={self.max_processes} must be at least 1 and "
                f"grace_s={self.grace_s} at least 0"
            )
            raise FleetError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetResult:
    """How the processes ended.

    Attributes:
        exit_codes: exit status of each process in slot order; -k where signal k ended it. Empty
            where the fleet was stopped before it had processes.
    """

    exit_codes: tuple[int, ...] = field(default=())


class Fleet(Generic[ItemT]):
    """Runs `target(items)` in processes and sees to it that none outlives the caller.

    The processes end when their target returns, when `stop` is called, on SIGTERM to the
    supervisor, and when the calling process dies in whatever way. Not thread-safe; the methods
    block, so call them in a worker thread from an event loop. POSIX only.

    Args:
        items: what the fleet is made of; at least one.
        target: runs in each process with that process's items. It, `prepare` and the items are
            pickled, so both are module-level functions of an importable module.
        prepare: runs once with all items before forking; must not start threads or open channels.
        config: processes, grace, log file.

    Raises:
        FleetError: if there is no item.
    """

    def __init__(
        self,
        items: Sequence[ItemT],
        target: Callable[[Sequence[ItemT]], None],
        *,
        prepare: Callable[[Sequence[ItemT]], None] = prepare_nothing,
        config: FleetConfig | None = None,
    ) -> None:
        if not items:
            message = "a fleet needs at least one item"
            raise FleetError(message)
        self._config = config or FleetConfig()
        self._order = FleetOrder(
            slots=spread(items, self._config.max_processes),
            target=target,
            prepare=prepare,
            grace_s=self._config.grace_s,
            ends_together=self._config.ends_together,
            waits=self._config.waits,
        )
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._pids: tuple[int, ...] | None = None
        self._result: FleetResult | None = None
        self._failure: str | None = None

    def start(self) -> None:
        """Start the supervisor and return at once; the processes follow when `prepare` is done.

        Raises:
            FleetError: if the fleet was started before.
        """
        if self._supervisor is not None:
            message = "the fleet was started before; make a new one"
            raise FleetError(message)
        log = None
        if self._config.log_path is not None:
            log = self._config.log_path.open("ab")
        try:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-P", "-m", "simulation.fleet.forking"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=self._config.pass_fds,
                env=os.environ | _SINGLE_THREADED | {"PYTHONPATH": _import_path()},
            )
        finally:
            if log is not None:
                log.close()
        # It may have died already; whoever waits is told.
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(self._order, _pipe(self._supervisor.stdin))
            _pipe(self._supervisor.stdin).flush()

    def release(self) -> None:
        """Let the processes of a fleet that waits start; once.

        Raises:
            FleetError: if the fleet is not started.
        """
        with contextlib.suppress(BrokenPipeError):
            _pipe(self._running().stdin).write(b"\n")
            _pipe(self._running().stdin).flush()

    def wait_started(self) -> tuple[int, ...]:
        """Wait until the processes run.

        Returns:
            Their process ids in slot order. Item i is in slot i modulo their number.

        Raises:
            FleetError: if the fleet is not started, or could not start its processes.
        """
        if self._pids is None:
            self._pids = tuple(self._heard("pids"))
        return self._pids

    def wait(self, timeout_s: float | None = None) -> FleetResult:
        """Wait until every process has ended by itself.

        Raises:
            FleetError: if the fleet is not started, or its supervisor failed.
            TimeoutError: if they still run after `timeout_s` seconds; they go on running.
        """
        if self._result is not None:
            return self._result
        supervisor = self._running()
        try:
            supervisor.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            message = f"the fleet still runs after {timeout_s} s"
            raise TimeoutError(message) from error
        self.wait_started()
        self._result = FleetResult(exit_codes=tuple(self._heard("exit_codes")))
        self._close()
        return self._result

    def stop(self) -> FleetResult:
        """End the processes, in order where they heed it and by force otherwise.

        Harmless when they have ended already.

        Raises:
            FleetError: if the fleet is not started, or its supervisor failed.
        """
        if self._result is not None:
            return self._result
        supervisor = self._running()
        is_preparing = self._is_preparing()
        if is_preparing:
            # It looks at its input when the processes run, and before that there is nothing to end.
            supervisor.terminate()
        else:
            with contextlib.suppress(BrokenPipeError):
                _pipe(supervisor.stdin).close()
        try:
            return self.wait(self._config.grace_s + _SUPERVISOR_GRACE_S)
        except TimeoutError:
            # Its processes die with it.
            supervisor.kill()
            return self.wait()
        except FleetError:
            if is_preparing and supervisor.returncode == -signal.SIGTERM:
                self._result = FleetResult()
                return self._result
            raise

    @property
    def is_running(self) -> bool:
        """True between `start` and the end of the last process."""
        return self._supervisor is not None and self._supervisor.poll() is None

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

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._supervisor is None:
            message = "the fleet is not started"
            raise FleetError(message)
        return self._supervisor

    def _is_preparing(self) -> bool:
        if self._pids is not None or not self.is_running:
            return False
        has_reported, _, _ = select.select([_pipe(self._running().stdout)], [], [], 0)
        return not has_reported

    def _heard(self, key: str) -> list[int]:
        if self._failure is not None:
            raise FleetError(self._failure)
        supervisor = self._running()
        line = _pipe(supervisor.stdout).readline()
        report = json.loads(line) if line else {}
        if key in report:
            return [int(number) for number in report[key]]
        # It told why, or died without a word; it is gone either way.
        reason = report.get("error", f"its supervisor ended with status {supervisor.wait()}")
        self._failure = f"the fleet failed: {reason}"
        self._close()
        raise FleetError(self._failure)

    def _close(self) -> None:
        supervisor = self._running()
        with contextlib.suppress(BrokenPipeError):
            _pipe(supervisor.stdin).close()
        _pipe(supervisor.stdout).close()
        supervisor.wait()


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    # Both pipes were asked for; the type of Popen cannot say so.
    return cast("IO[bytes]", stream)


def _import_path() -> str:
    """Let the supervisor import what this process can import, from the same places."""
    return os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
