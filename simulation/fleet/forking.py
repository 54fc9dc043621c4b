"""The process behind a `Fleet`: loads what its devices share, forks them, sees them end.

It is its own program so that it has one thread and no gRPC channel, both of which forking needs,
whatever the program that wants the fleet does. Standard input carries one pickled
`FleetOrder`, a byte where that says so, and then stays open: its end means that the owner closed
the fleet or died.
Standard output carries one JSON object per line: {"pids": [...]} once the processes run, then
{"exit_codes": [...]}, or {"error": "..."} instead of either.
"""

import contextlib
import json
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from typing import Final, TypeVar, cast

from server.processes.forking import begin_fork, make_forkable, open_fds
from simulation.errors import SimulationError
from simulation.fleet.training_places import FleetOrder

ItemT = TypeVar("ItemT")

_STDIN: Final = 0
_STDOUT: Final = 1
_STDERR: Final = 2


def main() -> int:
    """Run the fleet that standard input describes; return the exit status."""
    # What a terminal sends reaches the whole group; the owner decides what it means.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    known_fds = open_fds()
    # The pickle comes from the parent, which could run any code here anyway.
    order = cast("FleetOrder[object]", pickle.load(sys.stdin.buffer))  # noqa: S301
    try:
        order.prepare([item for slot in order.slots for item in slot])
    except SimulationError as error:
        _tell("error", str(error))
        return 1
    if order.waits and not sys.stdin.buffer.read(1):
        return 0  # the owner is gone
    make_forkable(known_fds=known_fds)
    processes = _processes(order)
    try:
        for process in processes:
            process.start()
        # Not before, or the processes would inherit it.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        _tell("pids", [process.pid for process in processes])
        _watch(processes, ends_together=order.ends_together)
    except (KeyboardInterrupt, BrokenPipeError):
        pass  # asked to end, or nobody listens any more
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end([process for process in processes if process.pid is not None], order.grace_s)
    with contextlib.suppress(BrokenPipeError):
        _tell("exit_codes", [process.exitcode for process in processes])
    return 0


def _processes(order: FleetOrder[ItemT]) -> list[ForkProcess]:
    context = multiprocessing.get_context("fork")
    return [
        context.Process(target=_run_slot, args=(order.target, slot, os.getpid()), daemon=True)
        for slot in order.slots
    ]


def _watch(processes: list[ForkProcess], *, ends_together: bool) -> None:
    running = {process.sentinel: process for process in processes}
    while running:
        ready = cast("list[int]", wait([_STDIN, *running]))
        if _STDIN in ready:
            return
        ended = [running.pop(sentinel) for sentinel in ready]
        for process in ended:
            process.join()
        if ends_together and any(process.exitcode for process in ended):
            return


def _end(processes: list[ForkProcess], grace_s: float) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + grace_s
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()


def _run_slot(
    target: Callable[[Sequence[ItemT]], None], items: Sequence[ItemT], supervisor_pid: int
) -> None:
    begin_fork(parent=supervisor_pid)
    # Standard output belongs to the supervisor's reports.
    os.dup2(_STDERR, _STDOUT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), _STDIN)
    target(items)


def _tell(key: str, value: object) -> None:
    # Unbuffered: nothing may be left to write when the interpreter exits.
    os.write(_STDOUT, f"{json.dumps({key: value})}\n".encode())


if __name__ == "__main__":
    # Every report is written; taking the client down would only cost time.
    os._exit(main())
