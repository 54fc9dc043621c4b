"""What one coordinator remembers of one shared round while it leads; losing it costs time only."""

import asyncio

from security.shared_round.terms.member_set import FrozenSet
from security.shared_round.terms.parameters import RoundParameters
from server.round.observers import SharingObserver
from server.sharing.conversation import Conversation
from server.sharing.pool import HolderPool
from server.sharing.relay import Relay


class Session:
    """One round: its relay, which may run in the background, and the talk about its set.

    Args:
        params: the round.
        relay: of its shares.
        pool: the holders.
        observer: told what is opened.
    """

    def __init__(
        self,
        params: RoundParameters,
        relay: Relay,
        *,
        pool: HolderPool,
        observer: SharingObserver,
    ) -> None:
        self.params = params
        self.relay = relay
        self._pool = pool
        self._observer = observer
        self._talk: Conversation | None = None
        self._running: asyncio.Task[frozenset[int]] | None = None
        self._is_complete = False  # all holders had everything the last time

    def talk_about(self, frozen: FrozenSet) -> Conversation:
        """Collect the statements about a set; a new set starts a new conversation."""
        if self._talk is None or self._talk.frozen.sha256 != frozen.sha256:
            self._talk = Conversation(self.params, frozen, pool=self._pool, observer=self._observer)
        return self._talk

    def relay_meanwhile(self, accepted: int) -> None:
        """Start to relay what came since, unless that is going on or nothing did.

        Args:
            accepted: contributions that there are now.

        Raises:
            Unavailable: if a store did not answer the last time.
        """
        if self._running is not None:
            if not self._running.done():
                return
            done, self._running = self._running, None
            self._is_complete = len(done.result()) == len(self._pool.indices)
        is_idle = self.relay.seen == accepted and self.relay.has_all_noise
        if self._is_complete and is_idle:
            return
        self._running = asyncio.create_task(self.relay.run(), name="relay")

    async def relay_all(self) -> frozenset[int]:
        """Relay everything; return the holders that have what they do not refuse."""
        if self._running is not None:
            running, self._running = self._running, None
            await running
        return await self.relay.run()

    def cancel(self) -> None:
        """Stop relaying soon."""
        if self._running is not None:
            self._running.cancel()

    async def close(self) -> None:
        """Stop relaying."""
        self.cancel()
        if self._running is not None:
            await asyncio.wait({self._running})
            self._running = None
