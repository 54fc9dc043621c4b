"""Steps of one round never overlap, whoever asks for them, gives up or fails."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from server.errors import Overloaded
from server.holder.shares import streams
from server.holder.shares.streams import StepTurns
from server.processes.thread_pool import Workers
from tests.races.hunting import HandTurnedLoop, examples, planted

ROUNDS = [b"one", b"two"]


class StepFailed(Exception):
    """What a step raises here."""


class StepTurnsMachine(RuleBasedStateMachine):
    """Every interleaving of requests, cancellations and ends of steps that hypothesis finds."""

    kind: type[StepTurns] = StepTurns

    def __init__(self) -> None:
        super().__init__()
        self.loop = HandTurnedLoop()
        self.turns = self.kind(cast("Workers", self))
        self.requests: list[asyncio.Task[bytes]] = []
        self.under_way: list[tuple[bytes, asyncio.Future[None]]] = []

    async def run(self, step: Callable[[bytes], bytes], request: bytes) -> bytes:
        """Take a step as a thread does, until the test ends it."""
        future = self.loop.future()
        self.under_way.append((request, future))
        await future
        return step(request)

    @rule(params=st.sampled_from(ROUNDS))
    def a_step_is_asked_for(self, params: bytes) -> None:
        self.requests.append(self.loop.start(self.turns.run(params, bytes.upper, params)))

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def a_caller_goes(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.requests)).cancel()

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), fails=st.booleans())
    def a_step_ends(self, data: st.DataObject, fails: bool) -> None:
        self.end(data.draw(st.integers(0, len(self.under_way) - 1)), fails=fails)

    @rule(times=st.integers(1, 3))
    def time_passes(self, times: int) -> None:
        self.loop.turn(times)

    @invariant()
    def steps_of_a_round_take_turns(self) -> None:
        assert max(Counter(params for params, _ in self.under_way).values(), default=0) <= 1

    def end(self, index: int, *, fails: bool) -> None:
        _, future = self.under_way.pop(index)
        if fails:
            future.set_exception(StepFailed())
        else:
            future.set_result(None)

    def teardown(self) -> None:
        try:
            self.everything_ends()
        finally:
            self.loop.close()

    def everything_ends(self) -> None:
        self.loop.turn(4)
        while self.under_way:
            self.steps_of_a_round_take_turns()
            self.end(0, fails=False)
            self.loop.turn(4)
        for task in self.requests:
            assert task.done()
            error = None if task.cancelled() else task.exception()
            assert error is None or isinstance(error, StepFailed | Overloaded)
        # Whoever named a round leaves nothing behind.
        assert not self.turns._waiting
        assert not self.loop.failures


class Hasty(StepTurns):
    """A planted race: a step waits for no other."""

    async def _run(self, lock: object, step: Callable[[Any], Any], request: object) -> Any:
        del lock
        return await self._workers.run(step, request)


@pytest.fixture(autouse=True)
def _few_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_WAITING_STEPS", 4)


def test_steps_in_any_order_of_events() -> None:
    run_state_machine_as_test(StepTurnsMachine, settings=examples(12, steps=20))


def test_a_planted_race_is_found() -> None:
    class Planted(StepTurnsMachine):
        kind = Hasty

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Planted, settings=planted(20))
