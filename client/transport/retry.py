"""When to try again: exponential backoff with full jitter, hints of the server and deadlines."""

import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from client.errors import ClientConfigError, FedaggError, RoundDeadlineError
from client.runtime import Runtime

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long and how often to retry. Pure: randomness and elapsed time are arguments.

    Attributes:
        initial_s: upper end of the first delay, > 0. 0.5: a restarting worker is back soon.
        max_s: upper end of every delay, >= initial_s.
        multiplier: growth of the upper end per failure, >= 1.
        max_attempts: tries of one call without progress, >= 1.
        total_s: seconds that one call may take without progress, delays included, > 0.

    References: M. Brooker (2015), "Exponential Backoff and Jitter", the full jitter variant.
    """

    initial_s: float = 0.5
    max_s: float = 30.0
    multiplier: float = 2.0
    max_attempts: int = 8
    total_s: float = 300.0

    def __post_init__(self) -> None:
        rules = (
            (0 < self.initial_s < math.inf, f"initial_s={self.initial_s} must be > 0"),
            (
                self.initial_s <= self.max_s < math.inf,
                f"max_s={self.max_s} must be at least initial_s={self.initial_s}",
            ),
            (1 <= self.multiplier < math.inf, f"multiplier={self.multiplier} must be >= 1"),
            (self.max_attempts >= 1, f"max_attempts={self.max_attempts} must be >= 1"),
            (self.total_s > 0, f"total_s={self.total_s} must be > 0"),
        )
        for holds, message in rules:
            if not holds:
                raise ClientConfigError(message)

    def delay_s(self, *, failures: int, rng: random.Random, hint_s: float | None = None) -> float:
        """Return how long to wait after the `failures`-th failure in a row, from 1.

        The hint is a floor and the jitter comes on top of it: devices refused together do not
        come back together.
        """
        try:
            ceiling = min(self.max_s, self.initial_s * self.multiplier ** (failures - 1))
        except OverflowError:
            ceiling = self.max_s
        return (hint_s or 0.0) + rng.uniform(0.0, ceiling)

    def next_delay_s(
        self, *, failures: int, elapsed_s: float, rng: random.Random, hint_s: float | None = None
    ) -> float | None:
        """Return the wait before the next try, or None when the policy gives up."""
        if failures >= self.max_attempts:
            return None
        delay = self.delay_s(failures=failures, rng=rng, hint_s=hint_s)
        return delay if elapsed_s + delay <= self.total_s else None


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
