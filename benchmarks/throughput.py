"""Updates per second by path and size, next to a server that only echoes.

Windows of the coordinator and of the echo alternate, and each ratio is taken within one pair, so
that what else the machine does hits both alike.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from benchmarks import page_cache
from benchmarks.deployment import BenchTask, Deployment, OpenRound, deployment
from benchmarks.figures import KIB, MIB, dim_of, median, percentile_ms, size_name
from benchmarks.load import LoadKind, LoadPlan, LoadResult, load_generator
from benchmarks.processes import ServerProcess, free_address, server_process
from updates.codec import ELEMENT_BYTES

DEVICES: Final = 64
STREAMS: Final = 4  # gateways, and uploads large enough to fill the link
BATCH: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One path and size; `count` updates a window."""

    kind: LoadKind
    payload_bytes: int
    count: int
    channels: int
    batch: int = 1

    @property
    def name(self) -> str:
        return f"{self.kind.value} {size_name(self.payload_bytes)}"


CASES: Final = (
    Case(kind=LoadKind.UNARY, payload_bytes=KIB, count=6000, channels=DEVICES),
    Case(kind=LoadKind.UNARY, payload_bytes=30 * KIB, count=4000, channels=DEVICES),
    Case(kind=LoadKind.CHUNKED, payload_bytes=KIB, count=3000, channels=DEVICES),
    Case(kind=LoadKind.CHUNKED, payload_bytes=30 * KIB, count=3000, channels=DEVICES),
    Case(kind=LoadKind.CHUNKED, payload_bytes=4 * MIB, count=120, channels=STREAMS),
    Case(kind=LoadKind.CHUNKED, payload_bytes=40 * MIB, count=20, channels=STREAMS),
    Case(kind=LoadKind.BATCHED, payload_bytes=KIB, count=64 * BATCH, channels=STREAMS, batch=BATCH),
)
# What `--quick` divides the counts by, but never below one round of all channels.
QUICK_DIVISOR: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One window against one server."""

    updates_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float  # of the server, per update
    store_cpu_us: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Medians over the windows of one case."""

    case: str
    updates_per_s: float
    megabytes_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    store_cpu_us: float
    echo_per_s: float
    echo_p50_ms: float
    echo_p99_ms: float
    echo_cpu_us: float
    ratio: float
    cpu_ratio: float
    windows: int


@dataclass(slots=True)
class _Pairs:
    ours: list[Window] = field(default_factory=list)
    echo: list[Window] = field(default_factory=list)


def measure(cases: Sequence[Case], *, windows: int) -> Iterator[Row]:
    """Yield one row per case; each case has a coordinator of its own."""
    for case in cases:
        # One window more, to warm up, and one device more, so that the round stays open.
        task = BenchTask(
            name="bench", dim=dim_of(case.payload_bytes), goal=case.count * (windows + 1) + 1
        )
        with deployment([task]) as deployed, _echo(case) as (target, echo):
            opened = deployed.open_round(task)
            pairs = _Pairs()
            for number in range(windows + 1):
                plan = _plan(case, deployed, opened, number)
                ours = _window(plan, deployed.coordinator, deployed)
                theirs = _window(replace(plan, target=target), echo, None)
                if number:
                    pairs.ours.append(ours)
                    pairs.echo.append(theirs)
            accepted = deployed.snapshot(task.name).accepted
            if accepted != task.goal - 1:
                msg = f"{case.name}: {accepted} updates were admitted, {task.goal - 1} were sent"
                raise RuntimeError(msg)
            yield _row(case, pairs)


def quick(case: Case) -> Case:
    """The same case with fewer updates."""
    least = max(case.channels, case.batch * case.channels)
    return replace(case, count=max(least, case.count // QUICK_DIVISOR))


def _plan(case: Case, deployed: Deployment, opened: OpenRound, number: int) -> LoadPlan:
    return LoadPlan(
        kind=case.kind,
        target=deployed.target,
        task=opened.task,
        channels=case.channels,
        count=case.count,
        first=number * case.count,
        round_number=opened.number,
        model_version=opened.base_version,
        dim=dim_of(case.payload_bytes),
        batch=case.batch,
    )


def _window(plan: LoadPlan, server: ServerProcess, deployed: Deployment | None) -> Window:
    with load_generator(plan) as generator:
        if deployed is not None and plan.kind is LoadKind.CHUNKED:
            # Payload files take memory that the machine may have given away since the last window.
            page_cache.warm(deployed.data_dir, plan.count * ELEMENT_BYTES * plan.dim)
        before = server.usage().cpu_s
        store_before = deployed.store_usage().cpu_s if deployed else 0.0
        result = generator.run()
        cpu_s = server.usage().cpu_s - before
        store_s = (deployed.store_usage().cpu_s if deployed else 0.0) - store_before
    if deployed is not None:
        deployed.discard_payloads()
    return _figures(plan, result, cpu_s=cpu_s, store_s=store_s)


def _figures(plan: LoadPlan, result: LoadResult, *, cpu_s: float, store_s: float) -> Window:
    return Window(
        updates_per_s=plan.count / result.seconds,
        p50_ms=percentile_ms(result.latency_s, 50),
        p99_ms=percentile_ms(result.latency_s, 99),
        cpu_us=1e6 * cpu_s / plan.count,
        store_cpu_us=1e6 * store_s / plan.count,
    )


def _row(case: Case, pairs: _Pairs) -> Row:
    ours, echo = pairs.ours, pairs.echo
    both = list(zip(ours, echo, strict=True))
    rate = median([w.updates_per_s for w in ours])
    return Row(
        case=case.name,
        updates_per_s=rate,
        megabytes_per_s=median([rate * case.payload_bytes / 1e6]),
        p50_ms=median([w.p50_ms for w in ours]),
        p99_ms=median([w.p99_ms for w in ours]),
        cpu_us=median([w.cpu_us for w in ours]),
        store_cpu_us=median([w.store_cpu_us for w in ours]),
        echo_per_s=median([w.updates_per_s for w in echo]),
        echo_p50_ms=median([w.p50_ms for w in echo]),
        echo_p99_ms=median([w.p99_ms for w in echo]),
        echo_cpu_us=median([w.cpu_us for w in echo]),
        ratio=median([a.updates_per_s / b.updates_per_s for a, b in both]),
        # The counters of a process tick in hundredths of a second: none may have passed.
        cpu_ratio=median([a.cpu_us / max(b.cpu_us, 1e-3) for a, b in both]),
        windows=len(ours),
    )


@contextlib.contextmanager
def _echo(case: Case) -> Iterator[tuple[str, ServerProcess]]:
    address = free_address()
    arguments = ("--address", address, "--batch", str(case.batch))
    with server_process("benchmarks.echo_server", arguments) as server:
        yield address, server
