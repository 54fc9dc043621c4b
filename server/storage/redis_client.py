"""One connection pool whose callers share round trips.

Single-shot callers (one coroutine per RPC) would each pay a round trip and a write to the socket.
Commands issued in the same turn of the event loop, or while earlier ones are under way, leave
together in one pipeline instead: about four times the rate on the same core.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Final

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer

from server.errors import StoreUnavailable

Reply = bytes | int | list["Reply"] | None
Argument = bytes | str | int | float

MAX_BATCH: Final = 512  # commands in one pipeline; bounds the memory of a burst
RETRY_AFTER_MS: Final = 500
SOCKET_TIMEOUT_S: Final = 10.0
PIPELINES: Final = 2  # one is answered while the next one fills

_SCRIPTS: Final = resources.files("server.storage") / "scripts"
SERVER_CLOCK: Final = (_SCRIPTS / "clock.lua").read_text(encoding="utf-8")
_TRANSITION: Final = (_SCRIPTS / "transition.lua").read_text(encoding="utf-8")
_TRANSITIONS: Final = frozenset({"commit", "open_round", "open_cohort", "finish", "exhaust"})


class StoreRefused(StoreUnavailable):
    """The server answered, with an error."""


class RedisClient:
    """Sends commands and scripts to one Redis.

    Args:
        url: redis://, rediss:// or unix:// URL.
        clock: Lua that defines `now_ms()` for every script. The default reads the server's TIME.
        observe: told the seconds of every round trip.

    Errors: every failure to get an answer is `StoreUnavailable` with a hint; the command may or may
    not have run, so only repeatable commands are sent.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: str = SERVER_CLOCK,
        observe: Callable[[float], object] = lambda _: None,
    ) -> None:
        self.redis = Redis(connection_pool=_pool(url))
        self.redis.response_callbacks.clear()  # replies are read here, as they come
        self._clock = clock
        self._observe = observe
        self._shas: dict[str, str] = {}
        self._queue: list[tuple[tuple[Argument, ...], asyncio.Future[Reply]]] = []
        self._flushing = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def command(self, *args: Argument) -> Reply:
        """Run one command; commands of other callers travel with it."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._queue.append((args, future))
        if self._flushing < PIPELINES:
            self._flushing += 1
            task = asyncio.create_task(self._flush())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    async def script(self, name: str, key: str, *args: Argument) -> Reply:
        """Run `scripts/<name>.lua` with one key."""
        sha = self._shas.get(name)
        if sha is None:
            sha = await self._load(name)
        try:
            return await self.command("EVALSHA", sha, 1, key, *args)
        except exceptions.NoScriptError:
            # The server restarted: scripts are not part of what it persists.
            sha = await self._load(name)
        try:
            return await self.command("EVALSHA", sha, 1, key, *args)
        except exceptions.NoScriptError as error:  # again: somebody flushes them all the time
            raise _unavailable(error) from error

    async def settings(self) -> dict[str, str]:
        """Return what the server tells of its set-up; less where it forbids CONFIG."""
        found: dict[str, str] = {}
        try:
            for name in ("append*", "no-appendfsync-on-rewrite", "maxmemory*"):
                rows = await self.command("CONFIG", "GET", name)
                words = (
                    [row.decode() for row in rows if isinstance(row, bytes)]
                    if isinstance(rows, list)
                    else []
                )
                found.update(zip(words[::2], words[1::2], strict=True))
        except StoreRefused:
            pass
        for section in ("persistence", "memory", "cluster"):
            info = await self.command("INFO", section)
            lines = info.decode().splitlines() if isinstance(info, bytes) else []
            pairs = (line.partition(":") for line in lines)
            found.update((name, value) for name, _, value in pairs)
        return found

    async def close(self) -> None:
        """Close the connections. Calls that still wait get `StoreUnavailable`."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        left, self._queue = self._queue, []
        for _, future in left:
            if not future.done():
                future.set_exception(StoreUnavailable("the round store was closed"))
        await self.redis.aclose(close_connection_pool=True)

    async def _load(self, name: str) -> str:
        text = (_SCRIPTS / f"{name}.lua").read_text(encoding="utf-8")
        parts = [self._clock, _TRANSITION] if name in _TRANSITIONS else [self._clock]
        sha = await self.command("SCRIPT LOAD", "\n".join([*parts, text]))
        if not isinstance(sha, bytes):
            msg = f"SCRIPT LOAD answered {sha!r}"
            raise StoreUnavailable(msg)
        self._shas[name] = sha.decode()
        return self._shas[name]

    async def _flush(self) -> None:
        try:
            await asyncio.sleep(0)  # let the other callers of this turn join
            while self._queue:
                batch, self._queue = self._queue[:MAX_BATCH], self._queue[MAX_BATCH:]
                await self._send(batch)
        finally:
            self._flushing -= 1

    async def _send(
        self, batch: Sequence[tuple[tuple[Argument, ...], "asyncio.Future[Reply]"]]
    ) -> None:
        pipeline = self.redis.pipeline(transaction=False)
        for args, _ in batch:
            pipeline.execute_command(*args)
        started = time.perf_counter()
        try:
            replies: list[object] = await pipeline.execute(raise_on_error=False)
            self._observe(time.perf_counter() - started)
        except (exceptions.RedisError, OSError) as error:
            replies = [_unavailable(error)] * len(batch)
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(_unavailable(error))
            raise
        for (_, future), reply in zip(batch, replies, strict=True):
            if not future.done():
                _settle(future, reply)


def require_url(url: str) -> None:
    """Look whether a client of this URL can be made; no server is called.

    Raises:
        ValueError: if not.
    """
    try:
        pool = _pool(url)
        pool.connection_class(**pool.connection_kwargs)
    except (exceptions.RedisError, TypeError) as error:
        msg = "holds an option that no connection has, or one with a wrong value"
        raise ValueError(msg) from error


def _pool(url: str) -> BlockingConnectionPool:
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=16,
        timeout=SOCKET_TIMEOUT_S,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
        retry=Retry(NoBackoff(), 1),
        protocol=2,  # arrays stay flat, whatever the server's version
    )
    pool.connection_class = _packing_in_c(pool.connection_class)
    return pool


def _packing_in_c(connection_class: type[AbstractConnection]) -> type[AbstractConnection]:
    """Let redis-py encode commands in C, as its synchronous clients do; five times as fast."""
    serializer = HiredisRespSerializer()

    class Connection(connection_class):  # type: ignore[misc,valid-type]  # known at run time
        def pack_command(self, *args: Argument) -> list[bytes]:
            packed: list[bytes] = serializer.pack(*args)  # type: ignore[arg-type]  # annotated as lists
            return packed

    return Connection


def _settle(future: "asyncio.Future[Reply]", reply: object) -> None:
    if isinstance(reply, exceptions.NoScriptError | StoreUnavailable):
        future.set_exception(reply)
    elif isinstance(reply, exceptions.ResponseError):
        future.set_exception(StoreRefused(f"the round store refused a command: {reply}"))
    elif isinstance(reply, Exception):
        future.set_exception(_unavailable(reply))
    else:
        future.set_result(reply)  # type: ignore[arg-type]  # redis-py's replies are untyped


def _unavailable(error: BaseException) -> StoreUnavailable:
    return StoreUnavailable(
        f"the round store did not answer: {type(error).__name__}: {error}",
        retry_after_ms=RETRY_AFTER_MS,
    )
