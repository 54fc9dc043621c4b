"""Child processes that end with the process that started them."""

import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

# Runs in the child and then becomes the command. A separate program, and not a function run between
# fork and exec, because that is unsafe once the parent has threads (gRPC always does).
# Python ignores SIGPIPE and SIGXFSZ and exec would pass that on to a command that expects neither.
_BECOME: Final = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit("cannot tie the process to its parent")
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"cannot run {sys.argv[2]}: {error.strerror}")
"""

_MODULE: Final = (sys.executable, "-P", "-m")


class ChildProcess(Protocol):
    """A child process that was started.

    Attributes:
        pid: process id.
        returncode: status it ended with, negative for a signal; None while it runs.
    """

    @property
    def pid(self) -> int:
        """Process id."""

    @property
    def returncode(self) -> int | None:
        """Status it ended with, negative for a signal; None while it runs."""

    async def wait(self) -> int:
        """Wait for the end of the process; return its status."""
        ...

    def terminate(self) -> None:
        """Send SIGTERM."""
        ...


class Forker(Protocol):
    """Starts processes from what another one has loaded; see `server.processes.template`."""

    async def fork(self, spec: "ProcessSpec") -> ChildProcess:
        """Start one process, a child of this one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """A child process to start and keep running.

    Attributes:
        name: for people, unique within one supervisor.
        command: program and arguments.
        forker: forks the process, whose command is a `module_command`; None: it is executed.
        environment: set in addition to the parent's environment.
        pass_fds: file descriptors the child inherits under the same numbers.
        stage: lower stages start first and stop last.
        ready: returns when the started process can serve; raises if it will not. None: at once.
        log_path: file that takes what it writes to standard output and error, appended to; None:
            it goes to the parent's.
    """

    name: str
    command: tuple[str, ...]
    forker: Forker | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()
    stage: int = 0
    ready: Callable[[], Awaitable[None]] | None = None
    log_path: Path | None = None


def module_command(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command that runs a module, and imports nothing from the folder it is run in."""
    return (*_MODULE, module, *arguments)


def module_of(command: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Return the module and the arguments that a `module_command` was made of.

    Raises:
        ValueError: if it is no such command.
    """
    prefix, (module, *arguments) = tuple(command[: len(_MODULE)]), command[len(_MODULE) :]
    if prefix != _MODULE:
        msg = f"{' '.join(command)} runs no module"
        raise ValueError(msg)
    return module, tuple(arguments)


def tied_to_parent(command: Sequence[str]) -> tuple[str, ...]:
    """Return a command that runs `command` and is killed when the calling process dies.

    Its process id is that of `command`. Start it from the main thread: Linux kills it when the
    *thread* that started it ends. Systems other than Linux have no such tie; there the child
    outlives a parent that is killed.

    Cost: about 20 ms more to start.
    """
    return (sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), *command)
