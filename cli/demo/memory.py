"""The memory of a set of processes over time."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

import psutil

_INTERVAL_S: Final = 0.2


class PeakMemory:
    """The largest sum of resident memory seen of some processes, pages they share counted often.

    Args:
        pids: tells which processes run now.
    """

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids = pids
        self.peak_bytes = 0

    def sample(self) -> None:
        """Look once."""
        self.peak_bytes = max(self.peak_bytes, sum(_resident_bytes(pid) for pid in self._pids()))

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
