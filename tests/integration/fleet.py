"""Real clients that count for themselves.

Every (round, device) has a coordinate of its own in the model, which starts at zero: the published
model tells which updates went into which round, and how often. It is compared with the receipts
that the devices got; no counter of the server is asked.
"""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from client import (
    ClientConfig,
    ClientEvent,
    ClientHooks,
    EventKind,
    MobileClient,
    Plan,
    RetryPolicy,
    TrainingResult,
    Weights,
)

TASK: Final = "kill"
DEVICES: Final = 8
PATIENCE_S: Final = 60.0  # for anything that should happen soon


class Gate:
    """Trainers wait here until they may go on; open at first."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.shut_from = DEVICES

    def shut(self, device: int) -> None:
        """Hold `device` and those after it."""
        self.shut_from = device
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def wait(self, device: int) -> None:
        if device >= self.shut_from and not self._open.wait(PATIENCE_S):
            msg = "the gate was never opened"
            raise TimeoutError(msg)


@dataclass(frozen=True)
class OneHot:
    """A trainer whose update is 1 at the coordinate of its device and round."""

    device: int
    gate: Gate

    def train(
        self,
        weights: Weights,
        plan: Plan,
        should_stop: Callable[[], bool],  # noqa: ARG002  # of the protocol
    ) -> TrainingResult:
        self.gate.wait(self.device)
        trained = weights["w"].copy()
        trained[(plan.round - 1) * DEVICES + self.device] += 1
        return TrainingResult(weights={"w": trained}, num_samples=1)


@dataclass
class Fleet:
    """Devices that run until the task is finished."""

    addresses: Sequence[str]
    gate: Gate = field(default_factory=Gate)
    acknowledged: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    submitting: int = 0  # uploads that were begun
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for device in range(DEVICES):
                group.create_task(self._run_device(device))

    async def acknowledgements(self, round_: int, count: int) -> None:
        """Wait until `count` devices have their receipt for a round."""
        await self._until(lambda: len(self.acknowledged[round_]) >= count)

    async def uploads_begin(self, count: int) -> None:
        """Wait until `count` more uploads are under way."""
        begun = self.submitting
        await self._until(lambda: self.submitting >= begun + count)

    async def _until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                self._news.clear()
                await self._news.wait()

    async def _run_device(self, device: int) -> None:
        config = ClientConfig(
            servers=tuple(self.addresses[(device + i) % 2] for i in range(2)),
            task=TASK,
            device_id=f"d{device}",
            insecure=True,
            call_timeout_s=5.0,
            stall_timeout_s=5.0,
            max_wait_s=2.0,
            progress_interval_s=None,
            retry=RetryPolicy(initial_s=0.05, max_s=0.5, max_attempts=1_000, total_s=120.0),
        )

        def on_event(event: ClientEvent) -> None:
            if event.kind is EventKind.ACCEPTED and event.receipt is not None:
                self.acknowledged[event.receipt.round].add(device)
            self.submitting += event.kind is EventKind.SUBMITTING
            self._news.set()

        hooks = ClientHooks(on_event=on_event)
        async with MobileClient(config, OneHot(device, self.gate), hooks=hooks) as client:
            await client.run()
