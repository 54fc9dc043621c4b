"""The processes of a demonstration: which are not ready yet, and what one that died said last."""

import asyncio
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from cli.exit_codes import CliError, ExitCode, exit_code_of
from server.processes.child_process import ProcessSpec
from server.processes.supervisor import ProcessEvent, ProcessEventKind, StartupError

_MAX_DEATHS: Final = 3
_PATIENCE_S: Final = 10.0
_MAX_LINE_CHARS: Final = 500
_TAIL_BYTES: Final = 8192


class ProcessWatch:
    """Follows a supervisor's processes.

    A process that dies in the middle is started again, which is told; one that does so again and
    again ends the demonstration.

    Args:
        specs: the processes.
        say: writes a line for the person who watches.
    """

    def __init__(self, specs: Sequence[ProcessSpec], say: Callable[[str], None]) -> None:
        self._logs: Mapping[str, Path | None] = {spec.name: spec.log_path for spec in specs}
        self._ready: set[str] = set()
        self._served: set[str] = set()
        self._pids: dict[str, int] = {}
        self._expected: set[int] = set()
        self._deaths: Counter[str] = Counter()
        self._say = say
        self._is_stopping = False
        self._all_ready = asyncio.Event()
        self._fault: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def observe(self, event: ProcessEvent) -> None:
        """Take an event of the supervisor."""
        match event.kind:
            case ProcessEventKind.STARTED:
                self._pids[event.name] = event.pid
            case ProcessEventKind.READY:
                self._ready.add(event.name)
                self._served.add(event.name)
            case ProcessEventKind.EXITED:
                self._pids.pop(event.name, None)
                self._ready.discard(event.name)
                self._died(event)
            case _:
                pass

    def expect(self, pid: int) -> None:
        """Know that a process is about to die."""
        self._expected.add(pid)

    def stopping(self) -> None:
        """Know that every process is about to end."""
        self._is_stopping = True

    def all_ready(self) -> None:
        """Know that every process is ready."""
        self._all_ready.set()

    async def ready(self) -> None:
        """Wait until every process is ready."""
        await self._all_ready.wait()

    async def fault(self) -> None:
        """Wait until a process has died too often.

        Raises:
            CliError: then; it tells what the process said last.
        """
        await asyncio.shield(self._fault)

    @property
    def starting(self) -> Sequence[str]:
        """Names of the processes that are not ready."""
        return [name for name in self._logs if name not in self._ready]

    def pids(self) -> Sequence[int]:
        """Tell which processes run now."""
        return list(self._pids.values())

    def never_ready(self, error: StartupError) -> CliError:
        """Tell of a process that ended before it was ready."""
        code = exit_code_of(error) or ExitCode.FAILURE
        return CliError(f"{error}: {self._last_words(error.process)}", exit_code=code)

    def _died(self, event: ProcessEvent) -> None:
        if self._is_stopping or event.pid in self._expected or self._fault.done():
            return
        if event.name not in self._served:
            # The supervisor makes it an error and ends the others.
            self._is_stopping = True
            return
        self._deaths[event.name] += 1
        told = f"{event.name} {ended(event.exit_code)}: {self._last_words(event.name)}"
        if self._deaths[event.name] > _MAX_DEATHS:
            self._fault.set_exception(CliError(f"{told} (time {self._deaths[event.name]})"))
            return
        self._say(f"{told}; it is started again, its log is {self._logs[event.name]}")

    def _last_words(self, name: str) -> str:
        path = self._logs.get(name)
        return "it has no log" if path is None else last_line(path)


class Waiting:
    """Says from time to time what is waited for.

    Args:
        say: writes a line for the person who watches.
        what: tells what is waited for now.
        clock: seconds.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        what: Callable[[], str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say = say
        self._what = what
        self._clock = clock
        self._since = self._told = clock()

    def progressed(self) -> None:
        """Learn that something came of the waiting."""
        self._since = self._told = self._clock()

    def tick(self) -> None:
        """Say it where it was not said for a while; call it often."""
        now = self._clock()
        if now - self._told >= _PATIENCE_S:
            self._told = now
            self._say(f"still waiting after {now - self._since:.0f} s: {self._what()}")


def ended(exit_code: int | None) -> str:
    """Tell how a process ended, in words."""
    if exit_code is not None and exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"ended with status {exit_code}"


def last_line(path: Path) -> str:
    """Return the last line of a log that says anything."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return "it wrote no log"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:_MAX_LINE_CHARS] if lines else "it wrote no log"


def kept_logs(folders: Sequence[Path], files: Sequence[Path]) -> Path:
    """Copy logs out of a folder that will be removed.

    Returns:
        A new folder with a copy of each folder, and of each file.
    """
    kept = Path(tempfile.mkdtemp(prefix="fedagg-demo-logs-"))
    for folder in folders:
        if folder.is_dir():
            shutil.copytree(folder, kept / folder.name)
    for file in files:
        if file.is_file():
            shutil.copy(file, kept / file.name)
    return kept
