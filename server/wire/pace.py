"""How slow a peer's stream may be."""

import asyncio
from types import TracebackType
from typing import Final, Self

from server.errors import Overloaded

OVERLOAD_RETRY_MS: Final = 1000


class Pace:
    """Ends what it surrounds when the stream falls silent or is too slow over the whole.

    One timer serves the whole stream: it is put off now and then, not at every message.

    Args:
        stall_s: longest silence.
        num_bytes: what is to come; takes this at `min_bytes_per_s` and one silence at the most.

    Raises:
        Overloaded: out of the block, when its time is over.
    """

    def __init__(self, *, stall_s: float, num_bytes: int, min_bytes_per_s: int) -> None:
        self._stall_s = stall_s
        self._loop = asyncio.get_running_loop()
        started = self._loop.time()
        self._deadline = started + stall_s + num_bytes / min_bytes_per_s
        self._timer = asyncio.timeout_at(started + stall_s)
        self._put_off_at = started

    def keep(self) -> None:
        """Tell that a message came."""
        now = self._loop.time()
        if now >= self._put_off_at:
            self._put_off_at = now + self._stall_s / 16
            self._timer.reschedule(min(now + self._stall_s, self._deadline))

    async def __aenter__(self) -> Self:
        await self._timer.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._timer.__aexit__(kind, error, traceback)
        except TimeoutError as timeout:
            raise too_slow("the upload was silent or slow for too long") from timeout


def too_slow(why: str) -> Overloaded:
    """Make the refusal of a sender that is too slow; it may come back."""
    return Overloaded(why, retry_after_ms=OVERLOAD_RETRY_MS)
