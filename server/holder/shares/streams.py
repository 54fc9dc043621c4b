"""Places for the streams that a holder reads at the same time, and the turns of a round's steps."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

from server.config.holder_config import HolderLimitsConfig
from server.errors import Overloaded
from server.processes.thread_pool import Workers

STREAMS_PER_DEVICE: Final = 2  # a device that lost its connection may be back before we notice
MAX_WAITING_STEPS: Final = 32  # of one round; a coordinator asks for one at a time

_RETRY_AFTER_MS: Final = 500

A = TypeVar("A")
R = TypeVar("R")


class StreamPlaces:
    """Bounds the shares that are read at once. For one event loop."""

    def __init__(self, limits: HolderLimitsConfig) -> None:
        self._places = asyncio.Semaphore(limits.streams_in_flight)
        self._capacity = limits.streams_in_flight + limits.streams_queued
        self._streams: Counter[str] = Counter()

    @asynccontextmanager
    async def of(self, device_id: str) -> AsyncIterator[None]:
        """Wait for a place for one stream of a device that proved itself.

        Raises:
            Overloaded: if too many wait, of all devices or of this one.
        """
        under_way = self._streams.total()
        if under_way >= self._capacity or self._streams[device_id] >= STREAMS_PER_DEVICE:
            msg = f"{under_way} streams are under way, {self._streams[device_id]} of this device"
            raise Overloaded(msg, retry_after_ms=_RETRY_AFTER_MS)
        self._streams[device_id] += 1
        try:
            async with self._places:
                yield
        finally:
            self._streams[device_id] -= 1
            if not self._streams[device_id]:
                del self._streams[device_id]


class StepTurns:
    """Runs the steps of a round one after the other, in a thread. For one event loop."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        # Gone with the last call that waits for it: callers may name any round.
        self._locks: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        self._waiting: Counter[bytes] = Counter()

    async def run(self, params_sha256: bytes, step: Callable[[A], R], request: A) -> R:
        """Run a step when no other of the round runs: a caller that asks twice costs once.

        Raises:
            Overloaded: if too many steps of the round wait.
        """
        if self._waiting[params_sha256] >= MAX_WAITING_STEPS:
            msg = f"{self._waiting[params_sha256]} steps of the round are waiting"
            raise Overloaded(msg, retry_after_ms=_RETRY_AFTER_MS)
        self._waiting[params_sha256] += 1
        lock = self._locks.setdefault(params_sha256, asyncio.Lock())
        running = asyncio.ensure_future(self._run(lock, step, request))
        # Nobody may be left to be told how it ended.
        running.add_done_callback(lambda task: self._end(params_sha256, task))
        # Shielded: work that is under way is finished and stored, whoever still listens.
        return await asyncio.shield(running)

    async def _run(self, lock: asyncio.Lock, step: Callable[[A], R], request: A) -> R:
        async with lock:
            return await self._workers.run(step, request)

    def _end(self, params_sha256: bytes, task: "asyncio.Future[Any]") -> None:
        self._waiting[params_sha256] -= 1
        if not self._waiting[params_sha256]:
            del self._waiting[params_sha256]
        if not task.cancelled():
            task.exception()
