"""Child processes that end with the process that started them."""

import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """A child process to start and keep running.

    Attributes:
        name: for people, unique within one supervisor.
        command: program and arguments.
        environment: set in addition to the parent's environment.
        pass_fds: file descriptors the child inherits under the same numbers.
        stage: lower stages start first and stop last.
        ready: returns when the started process can serve; raises if it will not. None: at once.
        log_path: file that takes what it writes to standard output and error, appended to; None:
            it goes to the parent's.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()
    stage: int = 0
    ready: Callable[[], Awaitable[None]] | None = None
    log_path: Path | None = None


def tied_to_parent(command: Sequence[str]) -> tuple[str, ...]:
    """Return a command that runs `command` and is killed when the calling process dies.

    Its process id is that of `command`. Start it from the main thread: Linux kills it when the
    *thread* that started it ends. Systems other than Linux have no such tie; there the child
    outlives a parent that is killed.

    Cost: about 20 ms more to start.
    """
    return (sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), *command)
