"""Faults inside a coordinator: at any call of a store it may crash, lose the answer or stop."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from server.errors import StoreUnavailable

T = TypeVar("T")


class FaultKind(Enum):
    """What happens at the call."""

    CRASH = "crash"  # the process is gone
    LOSE = "lose"  # the store does not answer
    PAUSE = "pause"  # the process stands still and may go on long after


class Moment(Enum):
    """Whether the store got the call."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault at the `call`-th use of a store from now on, from 0."""

    kind: FaultKind
    moment: Moment
    call: int


class Crash(BaseException):
    """The process ends here. No handler of the product may catch it."""


class FaultPoint:
    """Stands between a coordinator and its stores. One fault at a time."""

    def __init__(self) -> None:
        self._fault: Fault | None = None
        self._left = 0
        self._gate = asyncio.Event()
        self.paused = asyncio.Event()

    def arm(self, fault: Fault | None) -> None:
        self._fault = fault
        self._left = fault.call if fault else 0

    def resume(self) -> None:
        """Let the call that stands still go on."""
        self.paused.clear()
        self._gate.set()

    def reset(self) -> None:
        """Forget the fault."""
        self.arm(None)
        self.resume()

    async def around(self, call: Callable[[], Awaitable[T]]) -> T:
        """Pass a call on, unless it is the one to fail."""
        fault = self._fault
        if fault is None:
            return await call()
        if self._left:
            self._left -= 1
            return await call()
        self._fault = None
        if fault.moment is Moment.BEFORE:
            await self._strike(fault)
            return await call()
        result = await call()
        await self._strike(fault)
        return result

    async def _strike(self, fault: Fault) -> None:
        match fault.kind:
            case FaultKind.CRASH:
                raise Crash
            case FaultKind.LOSE:
                msg = "the answer was lost"
                raise StoreUnavailable(msg, retry_after_ms=1)
            case FaultKind.PAUSE:
                self._gate.clear()
                self.paused.set()
                await self._gate.wait()
