"""How the items of a fleet are spread over processes, and what its supervisor is told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOrder(Generic[ItemT]):
    """What a supervisor does; pickled, so its functions are module-level ones.

    Attributes:
        slots: the items of each process.
        target: what a process runs, with its items; the process ends when it returns.
        prepare: run once with all items before the processes are forked, so that what it loads
            is shared by them. It must neither start a thread nor open a gRPC
            channel.
        grace_s: seconds between asking a process to end and killing it.
        ends_together: whether a process that fails ends the others.
        waits: whether a byte on standard input is waited for before the processes are forked.
    """

    slots: tuple[tuple[ItemT, ...], ...]
    target: Callable[[Sequence[ItemT]], None]
    prepare: Callable[[Sequence[ItemT]], None]
    grace_s: float
    ends_together: bool = False
    waits: bool = False


def prepare_nothing(items: Sequence[object]) -> None:
    """Load nothing before the processes are forked."""
    del items


def spread(items: Sequence[ItemT], num_slots: int) -> tuple[tuple[ItemT, ...], ...]:
    """Deal items to at most `num_slots` non-empty slots; sizes differ by at most one."""
    return tuple(tuple(items[slot::num_slots]) for slot in range(min(num_slots, len(items))))
