"""What happens to one coordinator under many connections, a burst, whole rounds and a long kernel.

Every scenario has a coordinator of its own, so that its memory is its own.
"""

import time
from dataclasses import replace
from functools import partial
from typing import Final

from benchmarks.harness.cases import Benchmark, Case
from benchmarks.harness.figures import (
    MIB,
    Figures,
    dim_of,
    median,
    megabytes,
    percentile_ms,
    rounded,
)
from benchmarks.harness.processes import peak_resident_bytes, process_cpu_s, watched_memory
from benchmarks.service.deployment import BenchTask, Deployment, OpenRound, deployment
from benchmarks.service.load import LoadGenerator, LoadKind, LoadPlan, LoadResult
from monitoring.process_memory import proportional_bytes

UPLOADS_TASK: Final = "uploads"
CHECK_INS_TASK: Final = "check-ins"
STREAMS: Final = 4
CHECK_IN_DEVICES: Final = 40
WATCHED_S: Final = 5.0  # longer than the last upload of a round and its aggregation together
_NEVER: Final = 100_000  # a cohort that no benchmark fills: check-ins are offers that stand


def connections(_: int, *, count: int, rate_per_s: float, seconds: float) -> list[Figures]:
    """Keep `count` devices connected; each checks in by turns."""
    task = BenchTask(name=CHECK_INS_TASK, dim=100, goal=_NEVER)
    with deployment([task]) as deployed:
        pid = deployed.coordinator
        idle_bytes = proportional_bytes(pid)
        plan = LoadPlan(
            kind=LoadKind.CHECK_IN,
            target=deployed.target,
            task=task.name,
            channels=count,
            count=_whole_turns(rate_per_s * seconds, count),
            rate_per_s=rate_per_s,
        )
        with LoadGenerator(plan) as generator:
            before = process_cpu_s(pid)
            result = generator.run()
            cpu_s = process_cpu_s(pid) - before
            connected_bytes = proportional_bytes(pid)
    return [
        {
            "connections": count,
            "check_ins": result.done,
            "rate_per_s": rounded(result.done / result.seconds),
            "p50_ms": percentile_ms(result.latency_s, 50),
            "p99_ms": percentile_ms(result.latency_s, 99),
            "cpu_us": rounded(1e6 * cpu_s / result.done),
            "idle_pss_mb": megabytes(idle_bytes),
            "connected_pss_mb": megabytes(connected_bytes),
        }
    ]


def burst(_: int, *, uploads: int, payload_bytes: int) -> list[Figures]:
    """Start all uploads at once, each on its own connection."""
    task = BenchTask(name=UPLOADS_TASK, dim=dim_of(payload_bytes), goal=uploads + 1)
    with deployment([task]) as deployed:
        opened = deployed.open_round(task)
        with watched_memory(lambda: [deployed.coordinator]) as memory:
            result = _upload(deployed, task, opened, count=uploads, channels=uploads)
        peak_rss = peak_resident_bytes(deployed.coordinator)
        deployed.discard_payloads()
    return [
        {
            "uploads": result.done,
            "payload_mb": megabytes(payload_bytes),
            "seconds": rounded(result.seconds),
            "peak_pss_mb": megabytes(memory.peak_bytes),
            "peak_rss_mb": megabytes(peak_rss),
        }
    ]


def rounds(count: int, *, clients: int, payload_bytes: int) -> list[Figures]:
    """Play `count` rounds, after one to warm up: check in, fetch, upload, aggregate, publish."""
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
            with LoadGenerator(plan) as generator:
                cpu_s, store_s = process_cpu_s(deployed.coordinator), deployed.store_cpu_s()
                result = generator.run()
                deployed.wait_published(task.name, published + number)
                cpu_s = process_cpu_s(deployed.coordinator) - cpu_s
                store_s = deployed.store_cpu_s() - store_s
    return [
        {
            "clients": clients,
            "payload_mb": megabytes(payload_bytes),
            "rounds": count,
            "cpu_s_per_round": rounded(cpu_s / count),
            "store_cpu_s_per_round": rounded(store_s / count),
            "seconds_per_round": rounded(result.seconds / count),
        }
    ]


def check_ins(aggregations: int, *, updates: int, dim: int, rate_per_s: float) -> list[Figures]:
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
    return [
        {
            "rule": krum.rule,
            "updates": updates,
            "dim": dim,
            "aggregations": aggregations,
            "aggregation_s": median(lengths),
            "idle_p50_ms": percentile_ms(idle, 50),
            "idle_p99_ms": percentile_ms(idle, 99),
            "busy_p50_ms": percentile_ms(busy, 50),
            "busy_p99_ms": percentile_ms(busy, 99),
            "busy_samples": len(busy),
        }
    ]


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
    with LoadGenerator(last_upload) as device, LoadGenerator(watched) as watcher:
        watcher.go()
        time.sleep(WATCHED_S / 4)
        last = device.run()
        result = watcher.result()
        deployed.wait_published(task.name, published + 1)
    begin = last.started_at[0] + last.latency_s[0]
    return result, begin, deployed.published_at(task.name)


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
    with LoadGenerator(replace(plan, channels=channels)) as generator:
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


CONNECTIONS: Final = Benchmark(
    cases=[
        Case(
            name="connected devices",
            full=partial(connections, count=1000, rate_per_s=500, seconds=20.0),
            quick=partial(connections, count=100, rate_per_s=50, seconds=2.0),
        )
    ],
    target="1,000 connections without an error",
)
BURST: Final = Benchmark(
    cases=[
        Case(
            name="uploads at once",
            full=partial(burst, uploads=100, payload_bytes=40 * MIB),
            quick=partial(burst, uploads=10, payload_bytes=4 * MIB),
        )
    ],
    target="peak PSS of the coordinator <= 250 MB",
)
ROUNDS: Final = Benchmark(
    cases=[
        Case(
            name="whole rounds",
            full=partial(rounds, clients=20, payload_bytes=4 * MIB),
            quick=partial(rounds, clients=5, payload_bytes=MIB),
        )
    ],
    repeats=10,
    target="coordinator CPU under 0.4 s a round",
)
CHECK_INS: Final = Benchmark(
    cases=[
        Case(
            name="beside an aggregation",
            full=partial(check_ins, updates=100, dim=1_000_000, rate_per_s=200),
            quick=partial(check_ins, updates=10, dim=100_000, rate_per_s=200),
        )
    ],
    repeats=5,
    target="p99 <= 12 ms while Multi-Krum runs",
)
