"""What a process does before it forks others, and what they do first.

A process that forks has one thread and no open file but those it knows of: a lock that another
thread holds would stay held for ever in the fork, and a connection would have two owners.
"""

import contextlib
import ctypes
import fcntl
import gc
import os
import signal
import sys
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
_PR_SET_NAME: Final = 15
_MADV_DONTNEED: Final = 4  # madvise(2)
# Fields of proc_pid_stat(5), counted from the one after the name.
_ARG_START: Final = 45
_ARG_END: Final = 46


class NotForkableError(RuntimeError):
    """This process has a thread or a file that a fork of it must not have."""


def open_fds() -> frozenset[int]:
    """Name the open files of this process, as far as the system tells."""
    try:
        listed = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
        return frozenset(filter(_is_open, listed))
    except FileNotFoundError:
        return frozenset()


def make_forkable(*, known_fds: Set[int]) -> None:
    """Put what is loaded out of the collector's reach, and see to it that a fork is safe.

    The collector writes into every object it looks at, and a page that is written to is no longer
    shared with the forks.

    Args:
        known_fds: open files that forks may have.

    Raises:
        NotForkableError: if there is a second thread, or an open file beside `known_fds`.
    """
    gc.collect()
    gc.freeze()
    # Threads of the linear algebra end when a process forks, and come back when they are needed.
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    _give_back_code()
    if sys.platform != "linux":
        return
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        msg = f"what was loaded has started {threads - 1} threads"
        raise NotForkableError(msg)
    for fd in sorted(open_fds() - known_fds):
        msg = f"what was loaded has opened {Path(f'/proc/self/fd/{fd}').readlink()}"
        raise NotForkableError(msg)


def _give_back_code() -> None:
    """Unmap pages of libraries that were only read; whoever needs one finds it in the page cache.

    A compiler has 70 MB of code, of which nothing runs once the kernels are loaded.
    """
    if not Path("/proc/self/smaps").exists():
        return
    madvise = ctypes.CDLL(None).madvise
    for start, size in _unwritten_mappings(Path("/proc/self/smaps").read_text(encoding="utf-8")):
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _MADV_DONTNEED)


def _unwritten_mappings(smaps: str) -> Iterator[tuple[int, int]]:
    """Yield start and size of the mappings of files that cannot be written and never were.

    See proc_pid_smaps(5). What was written to, as by the dynamic linker, is anonymous, and would be
    lost.
    """
    start = size = 0
    for line in smaps.splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            first, last = (int(word, 16) for word in words[0].split("-"))
            is_file = len(words) > 5 and words[5].startswith("/")
            start, size = first, last - first if is_file and "w" not in words[1] else 0
        elif words[0] == "Anonymous:" and words[1] == "0" and size:
            yield start, size


def begin_fork(*, parent: int) -> None:
    """Make a process that was just forked one of its own, which ends when its parent ends.

    Args:
        parent: the process that is the parent now; where it is another one, this process ends.
    """
    _die_with(parent)
    gc.enable()
    # Python seeds its own generator anew in a fork, and cryptography draws from the system; this
    # one is global, and was perhaps loaded.
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def place_fds(received: Sequence[int], targets: Sequence[int]) -> None:
    """Give open files the numbers they are expected at; what had these before is closed."""
    # Away from the targets first: a number may be one file's present and another's future.
    above = max(targets, default=0) + 1
    moved = [_moved_above(fd, above) for fd in received]
    for fd, target in zip(moved, targets, strict=True):
        os.dup2(fd, target)
        os.close(fd)


def rename_process(name: str, title: str) -> None:
    """Show what this process is in lists of processes, as far as the system lets it.

    Args:
        name: short; the first 15 bytes are shown.
        title: in place of the command line, cut to its length.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_NAME, os.fsencode(name), 0, 0, 0)
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        start, size = int(fields[_ARG_START]), int(fields[_ARG_END]) - int(fields[_ARG_START])
        if start and size > 0:
            # The kernel reads the command line from here; Python has long copied it.
            ctypes.memset(start, 0, size)
            ctypes.memmove(start, os.fsencode(title), min(len(os.fsencode(title)), size - 1))


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # It may have died before the call above.
    if os.getppid() != parent:
        os._exit(1)


def _is_open(fd: int) -> bool:
    """Tell whether it is still open; what was only open to list the others is not."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _moved_above(fd: int, least: int) -> int:
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)
    os.close(fd)
    return moved
