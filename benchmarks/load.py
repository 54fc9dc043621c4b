"""What a load generator is told and what it tells; and the process that it runs in."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final, Self

from benchmarks.processes import ROOT
from server.processes.child_process import tied_to_parent
from server.processes.supervisor import worker_environment

CHUNK_BYTES: Final = 512 << 10  # what the device SDK sends


class LoadKind(Enum):
    """What the generator does."""

    UNARY = "unary"  # SubmitInlineUpdate
    CHUNKED = "chunked"  # SubmitUpdate
    BATCHED = "batched"  # SubmitUpdates
    CHECK_IN = "check-in"  # CheckIn at a steady rate
    ROUNDS = "rounds"  # whole rounds: check in, fetch the model, upload


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """A bounded amount of load.

    Attributes:
        kind: what is done.
        target: loopback host:port.
        task: task name.
        channels: connections; each has one call in flight, or one stream.
        count: updates, check-ins or rounds in total.
        first: number of the first device; upload number i is of device `first + i`.
        round_number: round the updates are for.
        model_version: version they were trained from.
        dim: dimension of an update.
        batch: updates per message of BATCHED.
        distinct: whether the updates of CHUNKED differ, as those of real devices do.
        rate_per_s: check-ins per second, over all connections.
    """

    kind: LoadKind
    target: str
    task: str
    channels: int
    count: int
    first: int = 0
    round_number: int = 1
    model_version: int = 1
    dim: int = 0
    batch: int = 1
    distinct: bool = False
    rate_per_s: float = 0.0

    def to_json(self) -> str:
        """One line."""
        return json.dumps({**dataclasses.asdict(self), "kind": self.kind.value})

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Inverse of `to_json`."""
        tree = json.loads(line)
        return cls(**{**tree, "kind": LoadKind(tree["kind"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What happened.

    Attributes:
        seconds: from the first call to the last answer.
        done: updates, check-ins or rounds that were answered as they should be.
        started_at: per answered call, `perf_counter` when it began; one clock on the whole host.
        latency_s: per answered call, as long.
        errors: what went wrong, the first few.
    """

    seconds: float
    done: int
    started_at: list[float]
    latency_s: list[float]
    errors: list[str]


class LoadGenerator:
    """A process that has connected and prepared its requests, and waits for `go`."""

    def __init__(self, plan: LoadPlan) -> None:
        self._process = subprocess.Popen(  # noqa: S603  # our own command
            tied_to_parent((sys.executable, "-m", "benchmarks.load_generator")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **worker_environment(), "PYTHONPATH": str(ROOT)},
            text=True,
        )
        self._say(plan.to_json())
        self._hear()

    def go(self) -> None:
        """Start."""
        self._say("go")

    def result(self) -> LoadResult:
        """Wait for the end.

        Raises:
            RuntimeError: if the generator failed, or any call did.
        """
        found = LoadResult(**json.loads(self._hear()))
        if found.errors:
            msg = f"{len(found.errors)} or more calls failed: {found.errors[0]}"
            raise RuntimeError(msg)
        return found

    def run(self) -> LoadResult:
        """`go` and `result`."""
        self.go()
        return self.result()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.communicate()

    def _say(self, line: str) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _hear(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            msg = "the load generator ended early; its own words are on standard error"
            raise RuntimeError(msg)
        return line


@contextlib.contextmanager
def load_generator(plan: LoadPlan) -> Iterator[LoadGenerator]:
    """A generator that is ready to go, for as long as the block."""
    generator = LoadGenerator(plan)
    try:
        yield generator
    finally:
        generator.close()
