"""Processor time of this process: what else the machine does is not in it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MIN_BATCH_S: Final = 0.02
"""Shorter calls are timed many at a time."""


@dataclass(slots=True)
class Spent:
    """Processor seconds, by what they were spent on."""

    seconds: dict[str, float] = field(default_factory=dict)

    def on(self, what: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function and note its time."""
        started = time.process_time()
        result = function(*args, **kwargs)
        self.seconds[what] = self.seconds.get(what, 0.0) + time.process_time() - started
        return result


def best_of(functions: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, float]:
    """Time functions in turn, so that a slow moment slows all of them.

    Returns:
        The least processor seconds of one call, by name.
    """
    calls = {name: _calls(function) for name, function in functions.items()}
    best: dict[str, float] = {}
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.process_time()
            for _ in range(calls[name]):
                function()
            seconds = (time.process_time() - started) / calls[name]
            best[name] = min(seconds, best.get(name, seconds))
    return best


def _calls(function: Callable[[], object]) -> int:
    """How many calls make a batch; the first call, which may compile, does not count."""
    function()
    started = time.process_time()
    function()
    seconds = time.process_time() - started
    return max(1, int(MIN_BATCH_S / max(seconds, 1e-6)))
