"""What a client takes from the outside world: time, sleep, randomness, tracing."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from opentelemetry.trace import TracerProvider


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Injected everywhere, so that tests and simulations decide what time it is.

    Attributes:
        clock: monotonic seconds; only differences have a meaning.
        sleep: waits that many seconds.
        rng: source of jitter and of ids; seed it only where runs have to be repeatable.
        tracer_provider: receives the spans; None: the process-wide provider.
    """

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    rng: random.Random = field(default_factory=random.SystemRandom)
    tracer_provider: TracerProvider | None = None

    def new_id(self) -> str:
        """Return 32 lower-case hex digits from `rng`."""
        return f"{self.rng.getrandbits(128):032x}"
