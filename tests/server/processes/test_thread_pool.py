"""Worker threads: bounded, and their results and errors come back."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Final

import pytest

from server.processes.thread_pool import Workers

DEADLINE_S: Final = 20.0


@pytest.fixture
def workers() -> Iterator[Workers]:
    found = Workers("kernel", threads=2)
    yield found
    found.close()


async def test_a_result_comes_back_from_a_named_thread(workers: Workers) -> None:
    def add(first: int, *, second: int) -> tuple[int, str]:
        return first + second, threading.current_thread().name

    total, thread = await workers.run(add, 1, second=2)
    assert total == 3
    assert thread.startswith("kernel")


async def test_an_error_comes_back(workers: Workers) -> None:
    def fail() -> None:
        raise ZeroDivisionError("no")

    with pytest.raises(ZeroDivisionError, match="no"):
        await workers.run(fail)


async def test_no_more_calls_run_at_once_than_there_are_threads(workers: Workers) -> None:
    lock, together = threading.Lock(), threading.Barrier(2)
    running = most = 0

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(DEADLINE_S)  # every call meets another one: two do run at once
        with lock:
            running -= 1

    await asyncio.gather(*(workers.run(work) for _ in range(6)))
    assert most == 2


async def test_a_cancelled_caller_does_not_stop_the_work(workers: Workers) -> None:
    started, finish, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        assert finish.wait(DEADLINE_S)
        done.set()

    call = asyncio.ensure_future(workers.run(work))
    assert await workers.run(started.wait, DEADLINE_S)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    finish.set()
    assert await workers.run(done.wait, DEADLINE_S)


async def test_close_drops_what_waits_and_awaits_what_runs() -> None:
    single = Workers("single", threads=1)
    started, finish = threading.Event(), threading.Event()
    ran: list[str] = []

    def first() -> None:
        started.set()
        assert finish.wait(DEADLINE_S)
        ran.append("first")

    running = asyncio.ensure_future(single.run(first))
    waiting = asyncio.ensure_future(single.run(ran.append, "second"))
    await asyncio.to_thread(started.wait, DEADLINE_S)
    closing = asyncio.ensure_future(asyncio.to_thread(single.close))
    with pytest.raises(asyncio.CancelledError):
        await waiting
    finish.set()
    await running
    await closing
    assert ran == ["first"]
