"""Updates per second by path and size, next to a server that only echoes.

Windows of the coordinator and of the echo alternate, and each ratio is taken within one pair, so
that what else the machine does hits both alike.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from benchmarks.harness.cases import Benchmark, Case
from benchmarks.harness.figures import (
    KIB,
    MIB,
    Figures,
    dim_of,
    median,
    percentile_ms,
    rounded,
    size_name,
)
from benchmarks.harness.processes import ServerProcess, free_address, process_cpu_s
from benchmarks.service import page_cache
from benchmarks.service.deployment import BenchTask, Deployment, OpenRound, deployment
from benchmarks.service.load import LoadGenerator, LoadKind, LoadPlan, LoadResult
from updates.codec import ELEMENT_BYTES

DEVICES: Final = 64
STREAMS: Final = 4  # gateways, and uploads large enough to fill the link
BATCH: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Updates on one path, of one size; `count` of them a window."""

    kind: LoadKind
    payload_bytes: int
    count: int
    channels: int
    batch: int = 1

    @property
    def name(self) -> str:
        """Name path and size."""
        return f"{self.kind.value} {size_name(self.payload_bytes)}"


TRAFFIC: Final = (
    Traffic(kind=LoadKind.UNARY, payload_bytes=KIB, count=6000, channels=DEVICES),
    Traffic(kind=LoadKind.UNARY, payload_bytes=30 * KIB, count=4000, channels=DEVICES),
    Traffic(kind=LoadKind.CHUNKED, payload_bytes=KIB, count=3000, channels=DEVICES),
    Traffic(kind=LoadKind.CHUNKED, payload_bytes=30 * KIB, count=3000, channels=DEVICES),
    Traffic(kind=LoadKind.CHUNKED, payload_bytes=4 * MIB, count=120, channels=STREAMS),
    Traffic(kind=LoadKind.CHUNKED, payload_bytes=40 * MIB, count=20, channels=STREAMS),
    Traffic(
        kind=LoadKind.BATCHED, payload_bytes=KIB, count=64 * BATCH, channels=STREAMS, batch=BATCH
    ),
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


@dataclass(slots=True)
class _Pairs:
    ours: list[Window] = field(default_factory=list)
    echo: list[Window] = field(default_factory=list)


def measure(traffic: Traffic, windows: int) -> list[Figures]:
    """Give one row; a coordinator of its own serves it."""
    # One window more, to warm up, and one device more, so that the round stays open.
    task = BenchTask(
        name="bench", dim=dim_of(traffic.payload_bytes), goal=traffic.count * (windows + 1) + 1
    )
    target = free_address()
    arguments = ("--address", target, "--batch", str(traffic.batch))
    with (
        deployment([task]) as deployed,
        ServerProcess("benchmarks.service.echo_server", arguments) as echo,
    ):
        opened = deployed.open_round(task)
        pairs = _Pairs()
        for number in range(windows + 1):
            plan = _plan(traffic, deployed, opened, number)
            ours = _window(plan, deployed.coordinator, deployed)
            theirs = _window(replace(plan, target=target), echo.pid, None)
            if number:
                pairs.ours.append(ours)
                pairs.echo.append(theirs)
        accepted = deployed.snapshot(task.name).accepted
    if accepted != task.goal - 1:
        msg = f"{traffic.name}: {accepted} updates were admitted, {task.goal - 1} were sent"
        raise RuntimeError(msg)
    return [_row(traffic, pairs)]


def quick(traffic: Traffic) -> Traffic:
    """Give the same traffic with fewer updates."""
    least = traffic.batch * traffic.channels
    return replace(traffic, count=max(least, traffic.count // QUICK_DIVISOR))


def _plan(traffic: Traffic, deployed: Deployment, opened: OpenRound, number: int) -> LoadPlan:
    return LoadPlan(
        kind=traffic.kind,
        target=deployed.target,
        task=opened.task,
        channels=traffic.channels,
        count=traffic.count,
        first=number * traffic.count,
        round_number=opened.number,
        model_version=opened.base_version,
        dim=dim_of(traffic.payload_bytes),
        batch=traffic.batch,
    )


def _window(plan: LoadPlan, pid: int, deployed: Deployment | None) -> Window:
    with LoadGenerator(plan) as generator:
        if deployed is not None and plan.kind is LoadKind.CHUNKED:
            # Payload files take memory that the machine may have given away since the last window.
            page_cache.warm(deployed.data_dir, plan.count * ELEMENT_BYTES * plan.dim)
        before, store_before = process_cpu_s(pid), deployed.store_cpu_s() if deployed else 0.0
        result = generator.run()
        cpu_s = process_cpu_s(pid) - before
        store_s = (deployed.store_cpu_s() if deployed else 0.0) - store_before
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


def _row(traffic: Traffic, pairs: _Pairs) -> Figures:
    ours, echo = pairs.ours, pairs.echo
    both = list(zip(ours, echo, strict=True))
    rate = median([w.updates_per_s for w in ours])
    return {
        "case": traffic.name,
        "updates_per_s": rate,
        "megabytes_per_s": rounded(rate * traffic.payload_bytes / 1e6),
        "p50_ms": median([w.p50_ms for w in ours]),
        "p99_ms": median([w.p99_ms for w in ours]),
        "cpu_us": median([w.cpu_us for w in ours]),
        "store_cpu_us": median([w.store_cpu_us for w in ours]),
        "echo_per_s": median([w.updates_per_s for w in echo]),
        "echo_cpu_us": median([w.cpu_us for w in echo]),
        "ratio": median([a.updates_per_s / b.updates_per_s for a, b in both]),
        "cpu_ratio": median([a.cpu_us / b.cpu_us for a, b in both]),
        "windows": len(ours),
    }


BENCHMARK: Final = Benchmark(
    cases=[
        Case(
            name=traffic.name,
            full=partial(measure, traffic),
            quick=partial(measure, quick(traffic)),
        )
        for traffic in TRAFFIC
    ],
    repeats=5,
    target="ratio to echo: unary >= 0.6, chunked >= 0.7; batched >= 10,000 updates/s",
)
