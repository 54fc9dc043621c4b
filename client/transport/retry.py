"""When to try again: exponential backoff with full jitter, hints of the server and deadlines."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from client.config import RetryPolicy
from client.errors import FedaggError, RoundDeadlineError
from client.runtime import Runtime

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """One coming retry, told to observers before the wait."""

    failures: int
    delay_s: float
    error: FedaggError


class Retrier:
    """Runs an operation until it succeeds, cannot succeed, or time is up."""

    def __init__(
        self,
        policy: RetryPolicy,
        runtime: Runtime,
        *,
        on_retry: Callable[[Retry], None] | None = None,
    ) -> None:
        self._policy = policy
        self._runtime = runtime
        self._on_retry = on_retry

    async def run(
        self,
        operation: Callable[[], Awaitable[T]],
        *,
        deadline_at: float = math.inf,
        progress: Callable[[], int] | None = None,
    ) -> T:
        """Call `operation` until it returns.

        Args:
            operation: repeatable; raises a retryable `FedaggError` to be called again.
            deadline_at: instant of the runtime's clock after which nothing is tried; the wait
                before a retry never passes it.
            progress: bytes done so far; an attempt that moved it starts the count anew, so a
                long transfer over a bad network is given up only when it stands still.

        Raises:
            RoundDeadlineError: if the deadline is over, or the next try would come after it.
            FedaggError: the last error, if it is not retryable or the policy gives up.
        """
        clock = self._runtime.clock
        failures, since, done = 0, clock(), progress() if progress else 0
        while True:
            if clock() >= deadline_at:
                raise RoundDeadlineError("the round ends before the call could be made")
            try:
                return await operation()
            except FedaggError as error:
                if not error.retryable:
                    raise
                if progress and progress() > done:
                    failures, since, done = 0, clock(), progress()
                failures += 1
                await self._wait(error, failures, clock() - since, deadline_at)

    async def _wait(
        self, error: FedaggError, failures: int, elapsed_s: float, deadline_at: float
    ) -> None:
        delay = self._policy.next_delay_s(
            failures=failures,
            elapsed_s=elapsed_s,
            rng=self._runtime.rng,
            hint_s=error.retry_after_s,
        )
        if delay is None:
            raise error
        if self._runtime.clock() + delay >= deadline_at:
            raise RoundDeadlineError(
                f"the round ends before the next try, due in {delay:.3f} s"
            ) from error
        if self._on_retry:
            self._on_retry(Retry(failures=failures, delay_s=delay, error=error))
        await self._runtime.sleep(delay)
