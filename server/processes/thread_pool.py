"""The one place where long computations leave the event loop.

Kernels run without the interpreter lock, in one thread beside the loop that may spread them over
further ones (`AggregationSettings.engine`); it leaves a core to the loop. File work has
threads of its own, so that an upload never waits for an aggregation.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """Bounded threads for work that must not run on the loop.

    Args:
        name: prefix of the thread names.
        threads: how many calls run at once; further ones wait their turn.
    """

    def __init__(self, name: str, *, threads: int) -> None:
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in a thread. A cancelled caller does not stop it."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, partial(function, *args, **kwargs))

    def close(self) -> None:
        """Let running calls end, drop those that wait."""
        self._pool.shutdown(wait=True, cancel_futures=True)
