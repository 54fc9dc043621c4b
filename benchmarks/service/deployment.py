"""`fedagg serve` on a temporary folder: its launcher, an embedded store, coordinators.

Durability is on: the store keeps its append-only file, payloads are files.
"""

import asyncio
import contextlib
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.harness.processes import ServerProcess, free_address, process_cpu_s
from server.config.durability import Durability
from server.round.ports import FinishedRound, Snapshot
from server.round.state import Phase
from server.storage.embedded import EmbeddedStore
from server.storage.redis_client import RedisClient
from server.storage.redis_store import RedisRoundStore
from updates.vectors import encode_model

WAIT_S: Final = 60.0
_POLL_S: Final = 0.005
_OFFER_TTL_MS: Final = 600_000
_OFFERS_AT_ONCE: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchTask:
    """A task to serve; its cohort has exactly `goal` devices.

    Attributes:
        rule, num_malicious_nodes: of its aggregation.
        more: further lines of its configuration, which may open tables.
    """

    name: str
    dim: int
    goal: int
    rule: str = "mean"
    num_malicious_nodes: int = 0
    more: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRound:
    """A round that takes updates of the devices `device_name(0)` to `device_name(goal - 1)`."""

    task: str
    number: int
    base_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What runs.

    Attributes:
        launcher: keeps the others running.
        target: where coordinators answer.
        coordinator: process id of the first.
        store: process id of their store.
        store_url: where it answers.
        data_dir: where it and the payloads are.
    """

    launcher: ServerProcess
    target: str
    coordinator: int
    store: int
    store_url: str
    data_dir: Path

    def store_cpu_s(self) -> float:
        """Read the processor seconds of the store since it started."""
        return process_cpu_s(self.store)

    def open_round(self, task: BenchTask) -> OpenRound:
        """Check `goal` devices in and wait until the coordinator has selected them."""
        return asyncio.run(self._open_round(task))

    def snapshot(self, task: str) -> Snapshot:
        """Read the task's state from the store."""
        return asyncio.run(self._snapshot(task))

    def wait_published(self, task: str, count: int) -> None:
        """Wait for `count` published rounds."""
        asyncio.run(self._wait_published(task, count))

    def published_at(self, task: str) -> float:
        """Tell when the last round was published, on this process's `perf_counter`.

        By the store's record, whose clock is that of this host: to watch for the moment would take
        time from the processes that are watched.
        """
        (finished,) = asyncio.run(self._last_round(task))
        return time.perf_counter() - (time.time() - finished.finished_at_ms / 1e3)

    def discard_payloads(self) -> None:
        """Remove stored payloads that no round will read: they need not reach the disk."""
        shutil.rmtree(self.data_dir / "blobs" / "updates", ignore_errors=True)

    async def _open_round(self, task: BenchTask) -> OpenRound:
        # An id that led to a selection once would get that one again.
        offer = uuid.uuid4().hex
        async with _round_store(self.store_url) as store:
            for start in range(0, task.goal, _OFFERS_AT_ONCE):
                numbers = range(start, min(start + _OFFERS_AT_ONCE, task.goal))
                await asyncio.gather(
                    *(
                        store.check_in(
                            task.name,
                            device_id=device_name(number),
                            check_in_id=offer,
                            ttl_ms=_OFFER_TTL_MS,
                            wanted=task.goal,
                        )
                        for number in numbers
                    )
                )
            deadline = time.monotonic() + WAIT_S
            while time.monotonic() < deadline:
                round_ = (await store.snapshot(task.name)).round
                if round_ is not None and round_.phase is Phase.COLLECTING:
                    return OpenRound(
                        task=task.name, number=round_.number, base_version=round_.base_version
                    )
                await asyncio.sleep(_POLL_S)
        msg = f"no round of task {task.name} opened within {WAIT_S:g} s"
        raise TimeoutError(msg)

    async def _snapshot(self, task: str) -> Snapshot:
        async with _round_store(self.store_url) as store:
            return await store.snapshot(task)

    async def _last_round(self, task: str) -> Sequence[FinishedRound]:
        async with _round_store(self.store_url) as store:
            return await store.finished_rounds(task, limit=1)

    async def _wait_published(self, task: str, count: int) -> None:
        async with _round_store(self.store_url) as store:
            deadline = time.monotonic() + WAIT_S
            while time.monotonic() < deadline:
                if (await store.snapshot(task)).published_rounds >= count:
                    return
                await asyncio.sleep(_POLL_S)
        msg = f"task {task} did not publish {count} rounds within {WAIT_S:g} s"
        raise TimeoutError(msg)


@contextlib.contextmanager
def deployment(tasks: Sequence[BenchTask], *, workers: int = 1) -> Iterator[Deployment]:
    """Serve `tasks` for as long as the block."""
    with tempfile.TemporaryDirectory(prefix="fedagg-bench-") as name:
        folder = Path(name)
        target, data_dir = free_address(), folder / "data"
        config = folder / "fedagg.toml"
        config.write_text(_config(folder, target, tasks), encoding="utf-8")
        arguments = ("serve", "--config", str(config), "--workers", str(workers))
        with ServerProcess("cli.main", (*arguments, "--format", "json")) as launcher:
            pids = launcher.children()
            yield Deployment(
                launcher=launcher,
                target=target,
                coordinator=pids["coordinator-1"],
                store=pids["store"],
                store_url=EmbeddedStore(data_dir / "store", durability=Durability.PROCESS).url,
                data_dir=data_dir,
            )


def device_name(number: int) -> str:
    """Id of a device that a benchmark plays."""
    return f"bench-{number:06d}"


@contextlib.asynccontextmanager
async def _round_store(url: str) -> AsyncIterator[RedisRoundStore]:
    client = RedisClient(url)
    try:
        yield RedisRoundStore(client)
    finally:
        await client.close()


def _config(folder: Path, target: str, tasks: Sequence[BenchTask]) -> str:
    blocks = [
        f'[listen]\ngrpc = "{target}"\nhttp = "127.0.0.1:0"\nmetrics = "127.0.0.1:0"',
        "[tls]\ninsecure = true",
        f'[store]\ndata-dir = "{folder / "data"}"',
    ]
    for task in tasks:
        model = folder / f"{task.name}.safetensors"
        model.write_bytes(encode_model({"weights": np.zeros(task.dim, np.float32)}))
        blocks.append(
            f'[[task]]\nname = "{task.name}"\ninitial-model = "{model}"\nnum-rounds = 1000\n'
            f"reporting-goal = {task.goal}\nover-selection = 1.0\ncollection-timeout-s = 3600\n"
            f'{task.more}[task.aggregation]\nrule = "{task.rule}"\n'
            f"num-malicious-nodes = {task.num_malicious_nodes}"
        )
    return "\n".join(blocks) + "\n"
