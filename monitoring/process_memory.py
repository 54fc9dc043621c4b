"""The memory of processes, in sizes that add up: shared pages count once."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import psutil

_INTERVAL_S: Final = 0.2
_PROC: Final = Path("/proc")


def proportional_bytes(pid: int) -> int:
    """Read the proportional set size (PSS) of a process of this user.

    A page that n processes share counts an n-th for each, so that sums count every page once.

    Returns:
        The size; 0 once the process has ended. Where the system does not tell (not Linux), the
        resident set size, in which every process has all that it shares.
    """
    try:
        text = (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return _resident_bytes(pid)
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0  # ended, and not yet waited for


class PeakMemory:
    """The largest sum of proportional set sizes seen of some processes.

    Args:
        pids: tells which processes run now.
    """

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids = pids
        self.peak_bytes = 0

    def sample(self) -> None:
        """Look once."""
        total = sum(proportional_bytes(pid) for pid in self._pids())
        self.peak_bytes = max(self.peak_bytes, total)

    async def watch(self) -> None:
        """Look a few times a second until cancelled."""
        while True:
            self.sample()
            await asyncio.sleep(_INTERVAL_S)


def _resident_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
