"""SIGTERM, treated as an interruption from the keyboard: what was begun is cleaned up."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Never


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM too. For the main thread."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> Never:
    del number, frame
    raise KeyboardInterrupt
