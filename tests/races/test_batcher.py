"""Callers that come, go and fail in any order get their own answers, and one batch is under way."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from server.errors import StoreUnavailable
from server.storage.batching import Batcher
from tests.races.hunting import HandTurnedLoop, examples, planted

MAX_SIZE = 4


class BatcherMachine(RuleBasedStateMachine):
    """Every interleaving of callers, cancellations, answers and failures that hypothesis finds."""

    kind: type[Batcher[int, int]] = Batcher

    def __init__(self) -> None:
        super().__init__()
        self.loop = HandTurnedLoop()
        self.batcher = self.kind(self.send, size_of=lambda _: 1, max_size=MAX_SIZE)
        self.callers: dict[int, asyncio.Task[int]] = {}
        self.under_way: list[tuple[Sequence[int], asyncio.Future[Any]]] = []
        self.sent: list[int] = []
        self.failed: set[int] = set()
        self.cancelled: set[int] = set()

    async def send(self, items: Sequence[int]) -> Sequence[int]:
        self.sent.extend(items)
        future = self.loop.future()
        self.under_way.append((items, future))
        return list(await future)

    @rule(count=st.integers(1, 2 * MAX_SIZE))
    def callers_come(self, count: int) -> None:
        for _ in range(count):
            item = len(self.callers)
            self.callers[item] = self.loop.start(self.batcher.submit(item))

    @precondition(lambda self: any(not task.done() for task in self.callers.values()))
    @rule(data=st.data())
    def a_caller_goes(self, data: st.DataObject) -> None:
        waiting = [item for item, task in self.callers.items() if not task.done()]
        item = data.draw(st.sampled_from(waiting))
        self.callers[item].cancel()
        self.cancelled.add(item)

    @precondition(lambda self: self.under_way)
    @rule(fails=st.booleans())
    def a_batch_ends(self, fails: bool) -> None:
        items, future = self.under_way.pop(0)
        if fails:
            self.failed.update(items)
            future.set_exception(StoreUnavailable("no answer"))
        else:
            future.set_result([-item for item in items])

    @rule(times=st.integers(1, 3))
    def time_passes(self, times: int) -> None:
        self.loop.turn(times)

    @invariant()
    def one_batch_is_under_way(self) -> None:
        assert len(self.under_way) <= 1
        assert all(len(items) <= MAX_SIZE for items, _ in self.under_way)

    @invariant()
    def items_are_sent_once_and_in_order(self) -> None:
        # A caller that goes before its task begins brings nothing.
        wanted = range(max(self.sent, default=-1) + 1)
        assert [
            item for item in wanted if item in self.sent or item not in self.cancelled
        ] == self.sent

    @invariant()
    def callers_get_their_own_answers(self) -> None:
        for item, task in self.callers.items():
            if not task.done() or (task.cancelled() and item in self.cancelled):
                continue
            if item in self.failed:
                assert isinstance(task.exception(), StoreUnavailable)
            else:
                assert task.result() == -item

    def teardown(self) -> None:
        try:
            self.everybody_is_answered()
        finally:
            self.loop.close()

    def everybody_is_answered(self) -> None:
        self.loop.turn(3)
        while self.under_way:
            self.one_batch_is_under_way()
            self.a_batch_ends(fails=False)
            self.loop.turn(3)
        assert all(task.done() for task in self.callers.values())
        self.callers_get_their_own_answers()
        assert not self.loop.failures


class Impatient(Batcher[int, int]):
    """A planted race: a caller that comes while a batch is under way starts another."""

    async def submit(self, item: int) -> int:
        self._sending = None
        return await super().submit(item)


def test_batches_in_any_order_of_events() -> None:
    run_state_machine_as_test(BatcherMachine, settings=examples(12, steps=20))


def test_a_planted_race_is_found() -> None:
    class Planted(BatcherMachine):
        kind = Impatient

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Planted, settings=planted(20))
