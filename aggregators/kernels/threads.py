"""Cuts a kernel's columns into pieces and runs them on the processor's cores."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

Piece = tuple[int, int]
Work = TypeVar("Work")
Answer = TypeVar("Answer")

_PIECES_PER_THREAD: Final = 4  # a core that was busy with something else catches up


def num_cores() -> int:
    """Count the cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cut(stop: int, *, step: int, num_threads: int) -> list[Piece]:
    """Cut 0..stop into a few pieces a thread, at multiples of `step`."""
    if num_threads == 1:
        return [(0, stop)]
    num_steps = -(-stop // step)
    num_pieces = min(num_steps, num_threads * _PIECES_PER_THREAD)
    edges = [piece * num_steps // num_pieces * step for piece in range(num_pieces)]
    return list(zip(edges, [*edges[1:], stop], strict=True))


def run_pieces(
    function: Callable[[Work], Answer], pieces: Sequence[Work], *, num_threads: int
) -> Iterator[Answer]:
    """Call `function` with each piece, several at a time; answers in the order of the pieces.

    Answers not yet asked for are few: pieces start as answers are taken.
    """
    if num_threads == 1 or len(pieces) == 1:
        yield from map(function, pieces)
        return
    with ThreadPoolExecutor(num_threads, thread_name_prefix="kernel") as pool:
        waiting = deque(pool.submit(function, piece) for piece in pieces[: num_threads + 1])
        for piece in pieces[num_threads + 1 :]:
            yield waiting.popleft().result()
            waiting.append(pool.submit(function, piece))
        while waiting:
            yield waiting.popleft().result()
