"""What happens to one coordinator under many connections, a burst, whole rounds and a long kernel.

Every scenario has a coordinator of its own, so that its memory is its own.
"""

import time
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.deployment import BenchTask, Deployment, OpenRound, deployment
from benchmarks.figures import dim_of, median, percentile_ms
from benchmarks.load import LoadKind, LoadPlan, LoadResult, load_generator

UPLOADS_TASK: Final = "uploads"
CHECK_INS_TASK: Final = "check-ins"
STREAMS: Final = 4
CHECK_IN_DEVICES: Final = 40
WATCHED_S: Final = 5.0  # longer than the last upload of a round and its aggregation together
_NEVER: Final = 100_000  # a cohort that no benchmark fills: check-ins are offers that stand


@dataclass(frozen=True, slots=True, kw_only=True)
class Connections:
    """Devices that stay connected and check in at a steady rate."""

    connections: int
    check_ins: int
    rate_per_s: float
    p50_ms: float
    p99_ms: float
    idle_rss_mb: float
    peak_rss_mb: float
    cpu_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """Large uploads that begin at the same moment."""

    uploads: int
    payload_mb: float
    seconds: float
    peak_rss_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """Whole rounds: check in, fetch the model, upload, aggregate, publish."""

    clients: int
    payload_mb: float
    rounds: int
    cpu_s: float  # of the coordinator, per round
    store_cpu_s: float
    seconds: float  # per round


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckIns:
    """Check-ins while the same process aggregates."""

    rule: str
    updates: int
    dim: int
    aggregations: int
    aggregation_s: float
    idle_p50_ms: float
    idle_p99_ms: float
    busy_p50_ms: float
    busy_p99_ms: float
    busy_samples: int


def connections(*, count: int, rate_per_s: float, seconds: float) -> Connections:
    """Keep `count` devices connected; each checks in by turns."""
    task = BenchTask(name=CHECK_INS_TASK, dim=100, goal=_NEVER)
    with deployment([task]) as deployed:
        idle = deployed.coordinator.usage()
        plan = LoadPlan(
            kind=LoadKind.CHECK_IN,
            target=deployed.target,
            task=task.name,
            channels=count,
            count=_whole_turns(rate_per_s * seconds, count),
            rate_per_s=rate_per_s,
        )
        with load_generator(plan) as generator:
            before = deployed.coordinator.usage()
            result = generator.run()
            after = deployed.coordinator.usage()
    return Connections(
        connections=count,
        check_ins=result.done,
        rate_per_s=median([result.done / result.seconds]),
        p50_ms=median([percentile_ms(result.latency_s, 50)]),
        p99_ms=median([percentile_ms(result.latency_s, 99)]),
        idle_rss_mb=median([idle.rss_bytes / 1e6]),
        peak_rss_mb=median([after.peak_rss_bytes / 1e6]),
        cpu_us=median([1e6 * (after.cpu_s - before.cpu_s) / result.done]),
    )


def burst(*, uploads: int, payload_bytes: int) -> Burst:
    """Start all uploads at once, each on its own connection."""
    task = BenchTask(name=UPLOADS_TASK, dim=dim_of(payload_bytes), goal=uploads + 1)
    with deployment([task]) as deployed:
        opened = deployed.open_round(task)
        result = _upload(deployed, task, opened, count=uploads, channels=uploads)
        peak = deployed.coordinator.usage().peak_rss_bytes
        deployed.discard_payloads()
    return Burst(
        uploads=result.done,
        payload_mb=median([payload_bytes / 1e6]),
        seconds=median([result.seconds]),
        peak_rss_mb=median([peak / 1e6]),
    )


def rounds(*, clients: int, payload_bytes: int, count: int) -> Rounds:
    """Play `count` rounds, after one to warm up."""
    task = BenchTask(name="rounds", dim=dim_of(payload_bytes), goal=clients)
    with deployment([task]) as deployed:
        for number in (1, count):
            published = deployed.snapshot(task.name).published_rounds
            plan = LoadPlan(
                kind=LoadKind.ROUNDS,
                target=deployed.target,
                task=task.name,
                channels=clients,
                count=clients * number,
                dim=task.dim,
            )
            with load_generator(plan) as generator:
                cpu_s, store_s = deployed.coordinator.usage().cpu_s, deployed.store_usage().cpu_s
                result = generator.run()
                deployed.wait_published(task.name, published + number)
                cpu_s = deployed.coordinator.usage().cpu_s - cpu_s
                store_s = deployed.store_usage().cpu_s - store_s
    return Rounds(
        clients=clients,
        payload_mb=median([payload_bytes / 1e6]),
        rounds=count,
        cpu_s=median([cpu_s / count]),
        store_cpu_s=median([store_s / count]),
        seconds=median([result.seconds / count]),
    )


def check_ins(*, updates: int, dim: int, aggregations: int, rate_per_s: float) -> CheckIns:
    """Check in at a steady rate while Multi-Krum rounds are aggregated, one after the other."""
    malicious = max(0, min(updates // 5, (updates - 3) // 2))
    krum = BenchTask(
        name=UPLOADS_TASK,
        dim=dim,
        goal=updates,
        rule="multi-krum",
        num_malicious_nodes=malicious,
    )
    waiting = BenchTask(name=CHECK_INS_TASK, dim=100, goal=_NEVER)
    busy: list[float] = []
    idle: list[float] = []
    lengths: list[float] = []
    with deployment([krum, waiting]) as deployed:
        for _ in range(aggregations):
            result, begin, end = _aggregate(deployed, krum, rate_per_s)
            lengths.append(end - begin)
            for at, latency in zip(result.started_at, result.latency_s, strict=True):
                if at > end:
                    continue
                # Also those that were under way when the aggregation began.
                (busy if at + latency > begin else idle).append(latency)
    return CheckIns(
        rule=krum.rule,
        updates=updates,
        dim=dim,
        aggregations=aggregations,
        aggregation_s=median(lengths),
        idle_p50_ms=median([percentile_ms(idle, 50)]),
        idle_p99_ms=median([percentile_ms(idle, 99)]),
        busy_p50_ms=median([percentile_ms(busy, 50)]),
        busy_p99_ms=median([percentile_ms(busy, 99)]),
        busy_samples=len(busy),
    )


def _aggregate(
    deployed: Deployment, task: BenchTask, rate_per_s: float
) -> tuple[LoadResult, float, float]:
    """Play one round under check-ins; return them, and when its aggregation began and ended."""
    opened = deployed.open_round(task)
    published = deployed.snapshot(task.name).published_rounds
    # All but the last update arrive before the check-ins are watched.
    _upload(deployed, task, opened, count=task.goal - 1)
    last_upload = _upload_plan(deployed, task, opened, first=task.goal - 1, count=1)
    watched = LoadPlan(
        kind=LoadKind.CHECK_IN,
        target=deployed.target,
        task=CHECK_INS_TASK,
        channels=CHECK_IN_DEVICES,
        count=_whole_turns(rate_per_s * WATCHED_S, CHECK_IN_DEVICES),
        rate_per_s=rate_per_s,
    )
    # Both are ready before anything is watched: to start a process takes a core for a second.
    with load_generator(last_upload) as device, load_generator(watched) as watcher:
        watcher.go()
        time.sleep(WATCHED_S / 4)
        last = device.run()
        end = deployed.wait_published(task.name, published + 1)
        result = watcher.result()
    return result, last.started_at[0] + last.latency_s[0], end


def _upload(
    deployed: Deployment,
    task: BenchTask,
    opened: OpenRound,
    *,
    count: int,
    channels: int = STREAMS,
) -> LoadResult:
    """Upload of the first `count` devices of the cohort."""
    plan = _upload_plan(deployed, task, opened, first=0, count=count)
    with load_generator(replace(plan, channels=channels)) as generator:
        return generator.run()


def _upload_plan(
    deployed: Deployment, task: BenchTask, opened: OpenRound, *, first: int, count: int
) -> LoadPlan:
    return LoadPlan(
        kind=LoadKind.CHUNKED,
        target=deployed.target,
        task=task.name,
        channels=1,
        count=count,
        first=first,
        round_number=opened.number,
        model_version=opened.base_version,
        dim=task.dim,
        distinct=True,
    )


def _whole_turns(calls: float, channels: int) -> int:
    return channels * max(1, round(calls / channels))
