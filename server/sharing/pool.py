"""All share holders of a committee: who answers, who has been away for too long, and their keys."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import grpc

from protos.fedagg.v1 import share_holder_pb2 as pb
from security.shared_round.terms.committee import Committee
from server.round.observers import SharingObserver
from server.sharing.holders import HolderAway, HolderClient, HolderError, HolderRefused

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers(Generic[T]):
    """What holders answered to one question, by their index."""

    given: Mapping[int, T]
    refused: Mapping[int, HolderRefused] = field(default_factory=dict)


class HolderPool:
    """The committee of one task.

    Args:
        task: whose holders these are; a label.
        committee: the holders.
        credentials: TLS of all of them; None: without it.
        timeout_s: how long a call may take, and how long a silent holder is hoped for.
        observer: metrics.
    """

    def __init__(
        self,
        task: str,
        committee: Committee,
        *,
        credentials: grpc.ChannelCredentials | None,
        timeout_s: float,
        observer: SharingObserver,
    ) -> None:
        self.committee = committee
        self._task = task
        self._timeout_s = timeout_s
        self._observer = observer
        self._clients = {
            identity.index: HolderClient(
                identity.index,
                address=identity.address,
                credentials=credentials,
                timeout_s=timeout_s,
            )
            for identity in committee.holders
        }
        self._away_since: dict[int, float] = {}
        self._has_keys = False

    @property
    def indices(self) -> tuple[int, ...]:
        """All holders, ascending."""
        return tuple(self._clients)

    def is_hoped_for(self, holder: int) -> bool:
        """Tell whether a holder that does not answer may still do so soon."""
        since = self._away_since.get(holder)
        return since is None or time.monotonic() - since < self._timeout_s

    async def ask(
        self,
        question: Callable[[HolderClient], Awaitable[T]],
        holders: Iterable[int] | None = None,
    ) -> Answers[T]:
        """Ask holders at the same time; all of them where none are named.

        What else a question raises is raised once all have ended. Those that do not answer are in
        neither part of the result. A holder that has long been
        away is asked like any other, and costs no time where its connection is refused.
        """
        asked = self.indices if holders is None else tuple(holders)
        outcomes = await asyncio.gather(
            *(self._ask(holder, question) for holder in asked), return_exceptions=True
        )
        found: dict[int, tuple[T] | HolderError] = {}
        for holder, outcome in zip(asked, outcomes, strict=True):
            # Not before all have ended: what a question left running would meet its repetition.
            if isinstance(outcome, BaseException) and not isinstance(outcome, HolderError):
                raise outcome
            found[holder] = outcome
        return Answers(
            given={
                holder: outcome[0]
                for holder, outcome in found.items()
                if not isinstance(outcome, HolderError)
            },
            refused={
                holder: outcome
                for holder, outcome in found.items()
                if isinstance(outcome, HolderRefused)
            },
        )

    async def exchange_keys(self) -> bool:
        """See to it that every holder has its replicated keys; cheap once they have.

        Returns:
            Whether all have. Every holder must answer until then, once in a committee's life.
        """
        if self._has_keys:
            return True
        described = await self.ask(HolderClient.describe)
        lacking = [holder for holder, told in described.given.items() if not told.has_keys]
        if lacking:
            dealt = await self.ask(HolderClient.deal_keys)
            keys = [key for some in dealt.given.values() for key in some]
            await self.ask(_accept(keys), lacking)
            described = await self.ask(HolderClient.describe)
        self._has_keys = len(described.given) == len(self.indices) and all(
            told.has_keys for told in described.given.values()
        )
        return self._has_keys

    def forget_keys(self) -> None:
        """Look again whether a holder has keys; it says that it lacks some."""
        self._has_keys = False

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(*(client.close() for client in self._clients.values()))

    async def _ask(
        self, holder: int, question: Callable[[HolderClient], Awaitable[T]]
    ) -> tuple[T] | HolderError:
        try:
            answer = await question(self._clients[holder])
        except HolderAway as error:
            self._away_since.setdefault(holder, time.monotonic())
            self._observer.holder_reachable(self._task, holder, reachable=False)
            return error
        except HolderRefused as error:
            self._note_answer(holder)
            self._observer.holder_refused(self._task, holder, error.reason)
            return error
        self._note_answer(holder)
        return (answer,)

    def _note_answer(self, holder: int) -> None:
        self._away_since.pop(holder, None)
        self._observer.holder_reachable(self._task, holder, reachable=True)


def _accept(keys: Sequence[pb.SealedKey]) -> Callable[[HolderClient], Awaitable[bool]]:
    return lambda client: client.accept_keys(keys)
