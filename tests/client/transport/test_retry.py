"""Backoff, hints and deadlines, with time that only moves by sleeping."""

import random

import pytest

from client.config import RetryPolicy
from client.errors import (
    ErrorReason,
    FedaggError,
    InvalidUpdateError,
    RoundDeadlineError,
    ServiceUnavailableError,
    TransportError,
)
from client.runtime import Runtime
from client.transport.retry import Retrier, Retry
from tests.client.federation import FakeTime


class FixedRandom(random.Random):
    """Draws the upper end of every range."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002
        return b


class Script:
    """Raises its errors one by one, then returns."""

    def __init__(self, *errors: FedaggError) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def overloaded(hint_s: float | None = None) -> ServiceUnavailableError:
    return ServiceUnavailableError(ErrorReason.OVERLOADED, "busy", retry_after_s=hint_s)


def upper_end(fake_time: FakeTime) -> Runtime:
    return Runtime(clock=fake_time.clock, sleep=fake_time.sleep, rng=FixedRandom())


async def test_delays_double_up_to_the_maximum(fake_time: FakeTime) -> None:
    policy = RetryPolicy(initial_s=1, max_s=5, multiplier=2, max_attempts=9)
    script = Script(*[TransportError("lost") for _ in range(5)])
    assert await Retrier(policy, upper_end(fake_time)).run(script) == "done"
    assert fake_time.sleeps == [1, 2, 4, 5, 5]


async def test_gives_up_after_the_last_attempt_with_the_last_error(fake_time: FakeTime) -> None:
    errors = [TransportError(str(number)) for number in range(5)]
    script = Script(*errors)
    with pytest.raises(TransportError) as caught:
        await Retrier(RetryPolicy(max_attempts=3), upper_end(fake_time)).run(script)
    assert caught.value is errors[2]
    assert script.calls == 3


async def test_gives_up_when_the_total_time_is_used(fake_time: FakeTime) -> None:
    policy = RetryPolicy(initial_s=10, max_s=10, max_attempts=99, total_s=35)
    script = Script(*[TransportError("lost") for _ in range(50)])
    with pytest.raises(TransportError):
        await Retrier(policy, upper_end(fake_time)).run(script)
    assert fake_time.sleeps == [10, 10, 10]


async def test_progress_starts_the_count_anew(fake_time: FakeTime) -> None:
    done = 0

    async def operation() -> str:
        nonlocal done
        done += 1
        if done < 20:
            raise TransportError("lost")
        return "done"

    policy = RetryPolicy(initial_s=1, max_attempts=2, total_s=3)
    retrier = Retrier(policy, upper_end(fake_time))
    assert await retrier.run(operation, progress=lambda: done) == "done"
    assert fake_time.sleeps == [1] * 19


async def test_a_refusal_that_cannot_change_is_not_retried(fake_time: FakeTime) -> None:
    script = Script(InvalidUpdateError(ErrorReason.WRONG_SHAPE, "no"))
    with pytest.raises(InvalidUpdateError):
        await Retrier(RetryPolicy(), upper_end(fake_time)).run(script)
    assert script.calls == 1
    assert fake_time.sleeps == []


async def test_the_hint_is_a_floor(fake_time: FakeTime) -> None:
    script = Script(overloaded(hint_s=42.0))
    await Retrier(RetryPolicy(initial_s=0.5), upper_end(fake_time)).run(script)
    assert fake_time.sleeps == [42.5]


async def test_never_sleeps_past_the_deadline(fake_time: FakeTime) -> None:
    script = Script(*[overloaded(hint_s=4.0) for _ in range(9)])
    retrier = Retrier(RetryPolicy(initial_s=1, max_s=1), upper_end(fake_time))
    with pytest.raises(RoundDeadlineError) as caught:
        await retrier.run(script, deadline_at=fake_time.now + 12)
    assert isinstance(caught.value.__cause__, ServiceUnavailableError)
    assert fake_time.sleeps == [5, 5]
    assert script.calls == 3


async def test_nothing_is_tried_after_the_deadline(fake_time: FakeTime) -> None:
    script = Script()
    with pytest.raises(RoundDeadlineError):
        await Retrier(RetryPolicy(), upper_end(fake_time)).run(script, deadline_at=fake_time.now)
    assert script.calls == 0


async def test_observers_hear_of_every_retry_before_the_wait(fake_time: FakeTime) -> None:
    heard: list[tuple[Retry, int]] = []
    error = TransportError("lost")
    retrier = Retrier(
        RetryPolicy(initial_s=1),
        upper_end(fake_time),
        on_retry=lambda retry: heard.append((retry, len(fake_time.sleeps))),
    )
    await retrier.run(Script(error))
    assert heard == [(Retry(failures=1, delay_s=1, error=error), 0)]
