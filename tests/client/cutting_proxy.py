"""A TCP proxy that cuts its connections after a number of bytes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self


class CuttingProxy:
    """Forwards to `target`; the n-th connection dies after `cut_after[n]` bytes, both ways summed.

    Connections beyond the list live as long as their ends.
    """

    def __init__(self, target: str, *, cut_after: list[int]) -> None:
        host, _, port = target.partition(":")
        self._target = (host, int(port))
        self._budgets = list(cut_after)
        self._connections: list[asyncio.Task[None]] = []
        self.num_cuts = 0
        self.address = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        budget = [self._budgets.pop(0)] if self._budgets else None
        async with _aborting(writer):
            upstream_reader, upstream_writer = await asyncio.open_connection(*self._target)
            async with _aborting(upstream_writer):
                pumps = [
                    asyncio.create_task(self._pump(reader, upstream_writer, budget)),
                    asyncio.create_task(self._pump(upstream_reader, writer, budget)),
                ]
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()
                    await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, budget: list[int] | None
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(16_384):
                if budget is not None:
                    budget[0] -= len(data)
                    if budget[0] < 0:
                        self.num_cuts += 1
                        return
                sink.write(data)
                await sink.drain()


@contextlib.asynccontextmanager
async def _aborting(end: asyncio.StreamWriter) -> AsyncIterator[None]:
    try:
        yield
    finally:
        end.transport.abort()
        with contextlib.suppress(OSError):
            await end.wait_closed()
