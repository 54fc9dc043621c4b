"""Starts the service's processes in order, keeps them running and stops them in reverse order."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from server.processes.child_process import ChildProcess, ProcessSpec, tied_to_parent

# Without these, buffers of a few MB are mapped and unmapped on every call, and the page faults cost
# more than the copies. One BLAS thread per worker: there is one worker per core.
WORKER_ENVIRONMENT: Final[Mapping[str, str]] = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "GRPC_EXPERIMENTS": "-event_engine_poller_for_python",
    "GRPC_ENABLE_FORK_SUPPORT": "0",
}


def worker_environment(inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables a worker needs before it starts; those already set are left alone."""
    return {name: value for name, value in WORKER_ENVIRONMENT.items() if name not in inherited}


class ProcessEventKind(Enum):
    """What happened to a process."""

    STARTED = "started"
    READY = "ready"
    EXITED = "exited"
    RESTARTING = "restarting"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessEvent:
    """One event. `exit_code` is negative for a signal; `delay_s` is set for RESTARTING.

    `pid` is that of the process that started or ended; 0: it could not be started.
    """

    kind: ProcessEventKind
    name: str
    pid: int
    exit_code: int | None = None
    delay_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """Delays before restarts double from `initial_s` to `max_s`.

    A process that lived for `reset_after_s` starts again at `initial_s`.
    """

    initial_s: float = 0.1
    max_s: float = 5.0
    reset_after_s: float = 10.0

    def delay_s(self, previous_s: float | None, lived_s: float) -> float:
        """Return the delay after a process lived `lived_s`; `previous_s` was the one before."""
        if previous_s is None or lived_s >= self.reset_after_s:
            return self.initial_s
        return min(2 * previous_s, self.max_s)


class StartupError(RuntimeError):
    """A process ended, or said it cannot serve, before it was ready for the first time.

    Attributes:
        process: its name.
        status: that it ended with, negative for a signal.
    """

    def __init__(self, message: str, *, process: str = "", status: int | None = None) -> None:
        super().__init__(message)
        self.process = process
        self.status = status


class Supervisor:
    """Runs processes until SIGTERM, SIGINT or `stop`.

    A stage starts when every process of the lower stages is ready. A process that dies is started
    again, whatever its exit code. A second signal ends the grace period. No process outlives the
    supervisor, however it dies (on Linux), nor any process they started, unless it made itself a
    group of its own.

    Args:
        specs: the processes, with distinct names.
        restart: delays between restarts.
        grace_s: from SIGTERM to SIGKILL, per stage.
        on_event: called on the event loop for every event; must not block.
        on_ready: called once, when every process is ready.
        sleep: waits that many seconds before a restart.
    """

    def __init__(  # noqa: PLR0913  # all but the first have defaults
        self,
        specs: Sequence[ProcessSpec],
        *,
        restart: RestartPolicy = RestartPolicy(),
        grace_s: float = 10.0,
        on_event: Callable[[ProcessEvent], None] = lambda _: None,
        on_ready: Callable[[], None] = lambda: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if len({spec.name for spec in specs}) != len(specs):
            msg = "process names must be distinct"
            raise ValueError(msg)
        self._children = [_Child(spec) for spec in specs]
        self._restart = restart
        self._grace_s = grace_s
        self._on_event = on_event
        self._on_ready = on_ready
        self._sleep = sleep
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._left_behind: set[int] = set()

    def stop(self) -> None:
        """Begin to stop everything; the second time, stop waiting for anything."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    async def run(self) -> None:
        """Run until stopped; every process has ended when it returns or raises.

        Raises:
            StartupError: if a process ends or fails before it was ever ready.
            RuntimeError: if called outside the main thread: signals go there, and the children are
                killed when the thread that started them ends.
        """
        if threading.current_thread() is not threading.main_thread():
            msg = "run the supervisor in the main thread"
            raise RuntimeError(msg)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGCHLD, self._reap_orphans)
        try:
            await self._run_stages()
        finally:
            for stage in reversed(self._stages()):
                await self._stop_all(stage)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                loop.remove_signal_handler(number)

    def _stages(self) -> list[list["_Child"]]:
        numbers = sorted({child.spec.stage for child in self._children})
        return [[child for child in self._children if child.spec.stage == n] for n in numbers]

    async def _run_stages(self) -> None:
        for stage in self._stages():
            for child in stage:
                child.keeper = asyncio.create_task(self._keep(child), name=child.spec.name)
            for child in stage:
                await self._unless_stopping(child.first_ready.wait())
        if not self._stopping.is_set():
            self._on_ready()
        await self._unless_stopping(asyncio.Event().wait())

    async def _unless_stopping(self, awaited: Awaitable[object]) -> None:
        """Wait for `awaited` or the stop signal; a keeper's error ends the wait."""
        keepers = [child.keeper for child in self._children if child.keeper is not None]
        waiting = [asyncio.ensure_future(awaited), asyncio.ensure_future(self._stopping.wait())]
        try:
            await asyncio.wait([*waiting, *keepers], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        for keeper in keepers:
            if keeper.done():
                keeper.result()

    async def _stop_all(self, stage: Sequence["_Child"]) -> None:
        for child in stage:
            child.stop.set()
        keepers = [child.keeper for child in stage if child.keeper is not None]
        # A keeper's error, if any, is already on its way out of `run`.
        await asyncio.gather(*keepers, return_exceptions=True)

    async def _keep(self, child: "_Child") -> None:
        delay_s: float | None = None
        while not child.stop.is_set():
            started_at = time.monotonic()
            pid, status, problem = await self._live(child)
            if child.stop.is_set():
                return
            if not child.first_ready.is_set():
                msg = f"{child.spec.name} {problem} before it was ready"
                raise StartupError(msg, process=child.spec.name, status=status)
            delay_s = self._restart.delay_s(delay_s, time.monotonic() - started_at)
            self._emit(ProcessEventKind.RESTARTING, child, pid, delay_s=delay_s)
            await _first_of(self._sleep(delay_s), child.stop.wait())

    async def _live(self, child: "_Child") -> tuple[int, int | None, str]:
        """Start a process and watch it to its end: its id, its status, what ended it, in words."""
        try:
            process = await self._start(child)
        except OSError as error:  # as where the system has no process left to give
            return 0, None, f"could not be started ({error})"
        if process is None:
            return 0, None, ""
        self._emit(ProcessEventKind.STARTED, child, process.pid)
        problem = await self._attend(child, process)
        self._left_behind.add(process.pid)
        self._reap_orphans()
        self._emit(ProcessEventKind.EXITED, child, process.pid, exit_code=process.returncode)
        return process.pid, process.returncode, problem

    async def _start(self, child: "_Child") -> ChildProcess | None:
        """Start a process; None where it is not wanted any more before it was there."""
        if child.spec.forker is None:
            return await _execute(child.spec)
        # Perhaps it waits for a template, which may not come back.
        forking = asyncio.ensure_future(child.spec.forker.fork(child.spec))
        try:
            await _first_of(asyncio.shield(forking), child.stop.wait())
            return forking.result() if forking.done() else None
        finally:
            forking.cancel()

    async def _attend(self, child: "_Child", process: ChildProcess) -> str:
        """Watch one process to its end; return what ended it, in words."""
        exited = asyncio.create_task(process.wait())
        problem = ""
        try:
            ready = asyncio.ensure_future(_ready(child.spec))
            stop = asyncio.ensure_future(child.stop.wait())
            await asyncio.wait([ready, exited, stop], return_when=asyncio.FIRST_COMPLETED)
            if ready.done() and not exited.done():
                problem = _problem_of(ready)
                if not problem:
                    self._emit(ProcessEventKind.READY, child, process.pid)
                    child.first_ready.set()
                    await asyncio.wait([exited, stop], return_when=asyncio.FIRST_COMPLETED)
            for task in (ready, stop):
                task.cancel()
            await asyncio.gather(ready, stop, return_exceptions=True)
            if not exited.done():
                await self._terminate(process, exited)
        finally:
            # What the process started and left behind, or the process itself if we were cancelled.
            _signal_group(process.pid, signal.SIGKILL)
            await exited
        return problem or f"ended with status {process.returncode}"

    async def _terminate(self, process: ChildProcess, exited: asyncio.Task[int]) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait(
            [exited, hurry], timeout=self._grace_s, return_when=asyncio.FIRST_COMPLETED
        )
        hurry.cancel()

    def _reap_orphans(self) -> None:
        """Reap what processes left in their groups, as it ends: this one may have adopted it."""
        for group in list(self._left_behind):
            try:
                while os.waitpid(-group, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:  # nothing of it is left
                self._left_behind.discard(group)

    def _emit(
        self,
        kind: ProcessEventKind,
        child: "_Child",
        pid: int,
        *,
        exit_code: int | None = None,
        delay_s: float | None = None,
    ) -> None:
        self._on_event(
            ProcessEvent(
                kind=kind, name=child.spec.name, pid=pid, exit_code=exit_code, delay_s=delay_s
            )
        )


class _Child:
    def __init__(self, spec: ProcessSpec) -> None:
        self.spec = spec
        self.first_ready = asyncio.Event()
        self.stop = asyncio.Event()
        self.keeper: asyncio.Task[None] | None = None


async def _execute(spec: ProcessSpec) -> ChildProcess:
    with contextlib.ExitStack() as stack:
        log = None
        if spec.log_path is not None:
            log = stack.enter_context(spec.log_path.open("ab", buffering=0))
        # A session of its own: Ctrl-C reaches the supervisor only, which then stops stage by stage.
        return await asyncio.create_subprocess_exec(
            *tied_to_parent(spec.command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **spec.environment},
            pass_fds=spec.pass_fds,
            start_new_session=True,
        )


async def _ready(spec: ProcessSpec) -> None:
    if spec.ready is not None:
        await spec.ready()


def _problem_of(ready: asyncio.Future[None]) -> str:
    error = ready.exception()
    return "" if error is None else f"reported: {error}"


def _signal_group(pid: int, number: signal.Signals) -> None:
    # PermissionError: macOS says so of a group whose members have all ended.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


async def _first_of(*awaitables: Awaitable[object]) -> None:
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
