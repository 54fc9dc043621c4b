"""Breaks off a transfer in which nothing moves."""

import asyncio
from types import TracebackType

from client.errors import TransportError


class StallGuard:
    """`async with` around a transfer: without `moved()` for `timeout_s` it is cancelled.

    Leaves with `TransportError` then, so that the transfer is resumed.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._timeout = asyncio.timeout(timeout_s)

    def moved(self) -> None:
        """Start the wait anew."""
        if not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._timeout_s)

    async def __aenter__(self) -> "StallGuard":
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._timeout.__aexit__(exc_type, exc, traceback)
        except TimeoutError as error:
            raise TransportError(f"nothing moved for {self._timeout_s} s") from error
