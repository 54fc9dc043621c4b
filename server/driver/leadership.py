"""Who drives a task: a lease that one process holds, and keeps while it works."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from server.errors import StoreUnavailable
from server.round.ports import Lease, RoundStore


class Leadership:
    """This process's claim to lead one task.

    Args:
        rounds: where the lease is.
        task: name of the task.
        owner: unique name of this process.
        ttl_s: how long the lease lives without being prolonged.
        on_change: told whether this process leads, at the first claim and whenever that changes.
    """

    def __init__(
        self,
        rounds: RoundStore,
        *,
        task: str,
        owner: str,
        ttl_s: float,
        on_change: Callable[[bool], None],
    ) -> None:
        self._rounds = rounds
        self._task = task
        self._owner = owner
        self._ttl_s = ttl_s
        self._on_change = on_change
        self._lease: Lease | None = None
        self._told: bool | None = None

    async def claim(self) -> Lease | None:
        """Take or prolong the lease; None while another process leads."""
        lease = await self._rounds.acquire_lease(
            self._task, owner=self._owner, ttl_ms=int(self._ttl_s * 1000)
        )
        self._lease = lease
        if (leads := lease is not None) is not self._told:
            self._told = leads
            self._on_change(leads)
        return lease

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Prolong the lease while something long runs.

        Losing it does not stop the work: the commit that follows is fenced.
        """
        keeper = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            keeper.cancel()
            await asyncio.wait({keeper})  # does not swallow a cancellation of the caller

    async def give_back(self) -> None:
        """Let the next leader start at once."""
        if self._lease is not None:
            with suppress(StoreUnavailable):
                await self._rounds.release_lease(self._task, self._lease)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._ttl_s / 3)
            with suppress(StoreUnavailable):
                await self.claim()
