"""Callers of the same step share it: one script call admits what many of them brought."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Gathers what arrives while a batch is under way, and sends it as the next one.

    An idle batcher sends at once, so that a lone caller waits for nobody; under load the batches
    grow by themselves. A caller that is cancelled stops waiting; what it brought may still be sent.

    Args:
        send: handles a batch, one answer per item in order.
        size_of: what an item counts towards `max_size`, >= 1.
        max_size: a batch ends with the item that reaches it.
    """

    def __init__(
        self,
        send: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        size_of: Callable[[T], int],
        max_size: int,
    ) -> None:
        self._send = send
        self._size_of = size_of
        self._max_size = max_size
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def submit(self, item: T) -> R:
        """Answer for `item`.

        Raises:
            Exception: whatever `send` raised for the batch that held the item.
        """
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all())
        return await future

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                await self._send_one(self._next_batch())
        finally:
            self._sending = None
            # Only a cancelled loop leaves any: nobody else will answer them.
            left, self._waiting = self._waiting, []
            for _, future in left:
                future.cancel()

    async def _send_one(self, batch: Sequence[tuple[T, "asyncio.Future[R]"]]) -> None:
        try:
            answers = await self._send([item for item, _ in batch])
        except Exception as error:  # the callers' to judge
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        except BaseException:
            for _, future in batch:
                future.cancel()
            raise
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)

    def _next_batch(self) -> list[tuple[T, "asyncio.Future[R]"]]:
        size = 0
        count = 0
        for item, _ in self._waiting:
            count += 1
            size += self._size_of(item)
            if size >= self._max_size:
                break
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch
