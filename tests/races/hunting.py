"""What the hunts share: threads that start at once, and an event loop that a test turns by hand."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import hypothesis

T = TypeVar("T")

_LONGER: Final = 10  # times as many examples with `--hypothesis-profile=races`
_END_S: Final = 30.0


def examples(count: int, *, steps: int = 50) -> hypothesis.settings:
    """Ask for so many examples of so many steps; more where somebody hunts for longer."""
    return hypothesis.settings(
        max_examples=len(attempts(count)),
        stateful_step_count=steps,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )


def planted(steps: int) -> hypothesis.settings:
    """Ask for the examples that a planted race must be found in, however long they are."""
    return hypothesis.settings(
        stateful_step_count=steps,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
        phases=[hypothesis.Phase.generate],
        report_multiple_bugs=False,
    )


def attempts(count: int) -> range:
    """Count attempts at what no seed decides, the turns of threads; likewise."""
    is_long = hypothesis.settings.get_current_profile_name() == "races"
    return range(count * (_LONGER if is_long else 1))


def together(*calls: Callable[[], object]) -> list[BaseException]:
    """Run calls in threads that start at once; return what they raised.

    Raises:
        TimeoutError: if one of them does not end.
    """
    barrier, raised = threading.Barrier(len(calls)), list[BaseException]()

    def run(call: Callable[[], object]) -> None:
        barrier.wait()
        try:
            call()
        except BaseException as error:  # the test's to judge
            raised.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_END_S)
        if thread.is_alive():
            msg = f"{thread.name} has not ended"
            raise TimeoutError(msg)
    return raised


class Unlocked:
    """Stands in for a lock, and locks nothing: what a planted race needs."""

    def __enter__(self) -> None:
        """Enter without waiting."""

    def __exit__(self, *_: object) -> None:
        """Leave."""


class HandTurnedLoop:
    """An event loop in debug mode that runs as far as it is told. Close it.

    Attributes:
        failures: what nobody waited for.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_debug(True)
        self.failures: list[dict[str, Any]] = []
        self._loop.set_exception_handler(lambda _, context: self.failures.append(context))

    def future(self) -> "asyncio.Future[Any]":
        """Make a future of this loop."""
        return self._loop.create_future()

    def start(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start a task; it runs with the next turn."""
        return self._loop.create_task(work)

    def turn(self, times: int = 1) -> None:
        """Run everything that is ready, so many times."""
        for _ in range(times):
            self._loop.call_soon(self._loop.stop)
            self._loop.run_forever()

    def close(self) -> None:
        """Cancel what is left and close the loop."""
        while tasks := asyncio.all_tasks(self._loop):
            for task in tasks:
                task.cancel()
            self.turn()
        self._loop.close()
