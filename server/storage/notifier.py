"""News of a task, without polling: one subscription per process, shared by all who wait."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from redis import exceptions
from redis.asyncio import Redis

from server.storage.keys import events_channel

RECONNECT_S: Final = 0.2


class Notifier:
    """Wakes those who wait for a change of a task.

    A message may be lost while the store is away, so every wait has a timeout and whoever wakes
    reads the state anew: news is a hint, never a fact.

    Args:
        redis: connection pool to subscribe with.
        tasks: tasks to listen for.
    """

    def __init__(self, redis: Redis, tasks: Iterable[str]) -> None:
        self._redis = redis
        self._channels = {events_channel(task).encode(): task for task in tasks}
        self._news: defaultdict[str, int] = defaultdict(int)
        self._waiting: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)

    def mark(self, task: str) -> int:
        """Count of news so far; take it before reading the state that may need a wait."""
        return self._news[task]

    async def wait(self, task: str, *, timeout_s: float, since: int) -> None:
        """Return once there is news of `task` after `since`, or after `timeout_s`."""
        if self._news[task] != since:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[task].add(future)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(future, timeout_s)
        finally:
            self._waiting[task].discard(future)

    async def run(self) -> None:
        """Listen until cancelled; reconnects by itself."""
        if not self._channels:
            return
        while True:
            try:
                await self._listen()
            except (exceptions.RedisError, OSError):
                await asyncio.sleep(RECONNECT_S)

    async def _listen(self) -> None:
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(*self._channels)
            for task in self._channels.values():
                self._wake(task)  # something may have happened while nobody listened
            while True:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=60)
                if message is not None:
                    self._wake(self._channels[message["channel"]])

    def _wake(self, task: str) -> None:
        self._news[task] += 1
        for future in self._waiting[task]:
            if not future.done():
                future.set_result(None)
