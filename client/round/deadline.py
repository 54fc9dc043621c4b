"""How much of a round is left, and what still fits into it."""

from collections.abc import Callable
from typing import Final

# Shorter transfers measure the latency, not the bandwidth.
_MIN_MEASURED_BYTES: Final = 64 * 1024


class RoundDeadline:
    """The instant after which a round is treated as over. Read from any thread."""

    def __init__(self, clock: Callable[[], float], *, ttl_s: float, margin_s: float) -> None:
        self._clock = clock
        self._margin_s = margin_s
        self.at = clock() + ttl_s - margin_s

    def renew(self, ttl_s: float) -> None:
        """Take over what the server says now."""
        self.at = self._clock() + ttl_s - self._margin_s

    def leaves(self, needed_s: float) -> bool:
        """Return whether a step of `needed_s` would still end in time."""
        return self._clock() + needed_s < self.at


class LinkEstimate:
    """Guesses transfer times from the last long transfer; optimistic until there was one."""

    def __init__(self) -> None:
        self._bytes_per_s: float | None = None

    def record(self, transferred_bytes: int, elapsed_s: float) -> None:
        """Take over one finished transfer."""
        if transferred_bytes >= _MIN_MEASURED_BYTES and elapsed_s > 0:
            self._bytes_per_s = transferred_bytes / elapsed_s

    def seconds_for(self, num_bytes: int) -> float:
        """Return how long `num_bytes` will take; 0 while nothing is known."""
        return num_bytes / self._bytes_per_s if self._bytes_per_s else 0.0
