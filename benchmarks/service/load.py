"""What a load generator is told and what it tells; and the process that it runs in."""

import dataclasses
import json
from dataclasses import dataclass
from enum import Enum
from typing import Final, Self

from benchmarks.harness.processes import TalkingProcess

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


class LoadGenerator(TalkingProcess):
    """A process that has connected and prepared its requests, and waits for `go`."""

    def __init__(self, plan: LoadPlan) -> None:
        super().__init__("benchmarks.service.load_generator")
        self.say(plan.to_json())
        self.hear()

    def go(self) -> None:
        """Start."""
        self.say("go")

    def result(self) -> LoadResult:
        """Wait for the end.

        Raises:
            RuntimeError: if the generator failed, or any call did.
        """
        found = LoadResult(**json.loads(self.hear()))
        if found.errors:
            msg = f"{len(found.errors)} or more calls failed: {found.errors[0]}"
            raise RuntimeError(msg)
        return found

    def run(self) -> LoadResult:
        """`go` and `result`."""
        self.go()
        return self.result()
