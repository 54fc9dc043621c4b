"""News of a task, without polling: one subscription per process, shared by all who wait."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from redis.asyncio import Redis

from monitoring.logs import get_logger
from server.storage.keys import drive_channel, events_channel

RECONNECT_S: Final = 0.2

_log = get_logger(__name__)


class News:
    """What one audience waits for.

    A message may be lost while the store is away, so every wait has a timeout and whoever wakes
    reads the state anew: news is a hint, never a fact.
    """

    def __init__(self) -> None:
        self._count: defaultdict[str, int] = defaultdict(int)
        self._waiting: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)

    def mark(self, task: str) -> int:
        """Count of news so far; take it before reading the state that may need a wait."""
        return self._count[task]

    async def wait(self, task: str, *, timeout_s: float, since: int) -> None:
        """Return once there is news of `task` after `since`, or after `timeout_s`."""
        if self._count[task] != since:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[task].add(future)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(future, timeout_s)
        finally:
            self._waiting[task].discard(future)

    def wake(self, task: str) -> None:
        """Tell everybody who waits for `task`."""
        self._count[task] += 1
        for future in self._waiting[task]:
            if not future.done():
                future.set_result(None)


class Notifier:
    """Listens for all tasks: devices hear of changes of phase, drivers of everything.

    Args:
        redis: connection pool to subscribe with.
        tasks: tasks to listen for.
    """

    def __init__(self, redis: Redis, tasks: Iterable[str]) -> None:
        self.devices = News()
        self.drivers = News()
        self._redis = redis
        self._channels: dict[bytes, tuple[str, tuple[News, ...]]] = {}
        for task in tasks:
            both = (self.devices, self.drivers)
            self._channels[events_channel(task).encode()] = (task, both)
            self._channels[drive_channel(task).encode()] = (task, (self.drivers,))

    async def run(self) -> None:
        """Listen until cancelled; whatever goes wrong, listen again."""
        if not self._channels:
            return
        while True:
            try:
                await self._listen()
            except Exception as error:  # an edge: without news everybody polls
                _log.warning("subscription_lost", error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(RECONNECT_S)

    async def _listen(self) -> None:
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(*self._channels)
            while True:
                # The confirmation of a subscription is news, too: something may have happened while
                # nobody listened. redis-py also subscribes anew by itself, without a word.
                message = await pubsub.get_message(timeout=60)
                if message is not None:
                    self._tell(message["channel"])

    def _tell(self, channel: bytes) -> None:
        task, audiences = self._channels[channel]
        for audience in audiences:
            audience.wake(task)
