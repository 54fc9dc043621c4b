"""Signals that end a command, treated as an interruption: what was begun is cleaned up."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Final, Never

ENDING: Final = (signal.SIGTERM, signal.SIGHUP)
"""Beside SIGINT: somebody ends the command, or its terminal closes."""


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on `ENDING` too. For the main thread.

    A signal that is ignored, as SIGHUP under `nohup`, stays so.
    """
    before = {number: signal.getsignal(number) for number in ENDING}
    taken = [number for number in ENDING if before[number] is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])


def _interrupt(number: int, frame: FrameType | None) -> Never:
    del number, frame
    raise KeyboardInterrupt
