"""Callers that share a step: nobody waits alone, nobody gets another one's answer."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from server.storage.batching import Batcher


@dataclass
class Step:
    """Doubles numbers, once it is let."""

    batches: list[list[int]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    error: BaseException | None = None

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [2 * item for item in items]


def batcher(step: Step, *, max_size: int = 100) -> Batcher[int, int]:
    return Batcher(step, size_of=lambda _: 1, max_size=max_size)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_arrives_meanwhile_is_the_next_batch() -> None:
    step = Step()
    shared = batcher(step)
    first = asyncio.ensure_future(shared.submit(1))
    await turns()
    others = [asyncio.ensure_future(shared.submit(item)) for item in (2, 3, 4)]
    await turns()
    assert step.batches == [[1]]  # a lone caller waits for nobody
    step.gate.set()
    assert [await first, *(await asyncio.gather(*others))] == [2, 4, 6, 8]
    assert step.batches == [[1], [2, 3, 4]]
    assert await shared.submit(5) == 10  # it starts again after a rest


async def test_a_batch_is_bounded() -> None:
    step = Step()
    step.gate.set()
    shared = batcher(step, max_size=3)
    answers = await asyncio.gather(*(shared.submit(item) for item in range(8)))
    assert answers == [2 * item for item in range(8)]
    assert [len(batch) for batch in step.batches] == [3, 3, 2]


async def test_an_item_larger_than_a_batch_goes_alone() -> None:
    step = Step()
    step.gate.set()
    shared: Batcher[int, int] = Batcher(step, size_of=lambda item: item, max_size=10)
    await asyncio.gather(*(shared.submit(item) for item in (50, 1, 50)))
    assert step.batches == [[50], [1, 50]]


async def test_all_callers_of_a_failed_batch_are_told_and_later_ones_are_not() -> None:
    step = Step(error=ConnectionError("gone"))
    step.gate.set()
    shared = batcher(step)
    results = await asyncio.gather(shared.submit(1), shared.submit(2), return_exceptions=True)
    assert [type(result) for result in results] == [ConnectionError] * 2
    step.error = None
    assert await shared.submit(3) == 6


async def test_a_cancelled_caller_takes_nobody_with_it() -> None:
    step = Step()
    shared = batcher(step)
    calls = [asyncio.ensure_future(shared.submit(item)) for item in (1, 2)]
    await turns()
    calls[0].cancel()
    step.gate.set()
    assert await calls[1] == 4
    with pytest.raises(asyncio.CancelledError):
        await calls[0]


async def test_nobody_waits_for_ever_where_the_step_is_cancelled() -> None:
    step = Step(error=asyncio.CancelledError())
    shared = batcher(step)
    calls = [asyncio.ensure_future(shared.submit(1))]
    await turns()
    calls.append(asyncio.ensure_future(shared.submit(2)))
    await turns()
    step.gate.set()
    results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 2
