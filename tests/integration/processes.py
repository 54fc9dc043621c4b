"""Coordinators and a store as processes that can be killed, and devices that count for themselves.

Every (round, device) has a coordinate of its own in the model, which starts at zero: the published
model tells which updates went into which round, and how often. It is compared with the receipts
that the devices got; no counter of the server is asked.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators.vectors import decode_model, encode_model
from client import (
    ClientConfig,
    ClientEvent,
    ClientHooks,
    EventKind,
    MobileClient,
    Plan,
    RetryPolicy,
    TrainingResult,
    Weights,
)
from server.child_process import tied_to_parent
from server.storage.embedded import EmbeddedStore
from server.storage.keys import events_channel, task_prefix
from server.storage.ports import Durability
from server.storage.redis_client import RedisClient
from server.supervisor import worker_environment

TASK: Final = "kill"
DEVICES: Final = 8
GOAL: Final = 6
QUORUM: Final = 4
NUM_ROUNDS: Final = 6
MAX_ROUNDS: Final = 64
# So large that updates travel in chunks and no phase is over in an instant.
DIM: Final = 1_000_000
START_S: Final = 60.0
TOLERANCE: Final = 1e-5  # float32 of 1/n, where n <= 8

_ROOT: Final = Path(__file__).parents[2]
_CONFIG: Final = """
[tls]
insecure = true
[listen]
http = "127.0.0.1:0"
metrics = "127.0.0.1:0"
[store]
data-dir = {data_dir}
[rounds]
lease-ttl-s = 0.5
poll-interval-s = 0.05
check-in-ttl-s = 2.0
[[task]]
name = "{task}"
initial-model = {model}
num-rounds = {num_rounds}
reporting-goal = {goal}
min-contributions = {quorum}
over-selection = 1.3
collection-timeout-s = 60.0
"""


class Gate:
    """Trainers wait here until they may go on; open at first."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.shut_from = DEVICES

    def shut(self, device: int) -> None:
        """Hold `device` and those after it."""
        self.shut_from = device
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def wait(self, device: int) -> None:
        if device >= self.shut_from and not self._open.wait(START_S):
            msg = "the gate was never opened"
            raise TimeoutError(msg)


@dataclass(frozen=True)
class OneHot:
    """A trainer whose update is 1 at the coordinate of its device and round."""

    device: int
    gate: Gate

    def train(
        self,
        weights: Weights,
        plan: Plan,
        should_stop: Callable[[], bool],  # noqa: ARG002  # of the protocol
    ) -> TrainingResult:
        self.gate.wait(self.device)
        trained = weights["w"].copy()
        trained[(plan.round - 1) * DEVICES + self.device] += 1
        return TrainingResult(weights={"w": trained}, num_samples=1)


@dataclass
class Fleet:
    """Devices that run until the task is finished."""

    addresses: Sequence[str]
    gate: Gate = field(default_factory=Gate)
    acknowledged: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    submitting: int = 0  # uploads that were begun
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for device in range(DEVICES):
                group.create_task(self._run_device(device))

    async def acknowledgements(self, round_: int, count: int) -> None:
        """Wait until `count` devices have their receipt for a round."""
        await self._until(lambda: len(self.acknowledged[round_]) >= count)

    async def uploads_begin(self, count: int) -> None:
        """Wait until `count` more uploads are under way."""
        begun = self.submitting
        await self._until(lambda: self.submitting >= begun + count)

    async def _until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(START_S):
            while not holds():
                self._news.clear()
                await self._news.wait()

    async def _run_device(self, device: int) -> None:
        config = ClientConfig(
            servers=tuple(self.addresses[(device + i) % 2] for i in range(2)),
            task=TASK,
            device_id=f"d{device}",
            insecure=True,
            call_timeout_s=5.0,
            stall_timeout_s=5.0,
            max_wait_s=2.0,
            progress_interval_s=None,
            retry=RetryPolicy(initial_s=0.05, max_s=0.5, max_attempts=1_000, total_s=120.0),
        )

        def on_event(event: ClientEvent) -> None:
            if event.kind is EventKind.ACCEPTED and event.receipt is not None:
                self.acknowledged[event.receipt.round].add(device)
            self.submitting += event.kind is EventKind.SUBMITTING
            self._news.set()

        hooks = ClientHooks(on_event=on_event)
        async with MobileClient(config, OneHot(device, self.gate), hooks=hooks) as client:
            await client.run()


@dataclass
class Worker:
    """One coordinator process on a port that stays its own."""

    index: int
    folder: Path
    store_url: str
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        if self.process is None:
            msg = f"worker {self.index} does not run"
            raise RuntimeError(msg)
        return self.process.pid

    @property
    def log(self) -> Path:
        return self.folder / f"worker-{self.index}.log"

    async def start(self) -> None:
        """Start the process and wait until it serves."""
        ready, told = os.pipe()
        try:
            self.process = self._spawn(told)
            os.close(told)
            async with asyncio.timeout(START_S):
                served = await _read_one(ready)
        finally:
            os.close(ready)
        assert served, self.log.read_text()

    def stop_still(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _spawn(self, ready_fd: int) -> subprocess.Popen[bytes]:
        arguments = {
            "--config": self.folder / "server.toml",
            "--store-url": self.store_url,
            "--log-file": self.log,
            "--ready-fd": ready_fd,
        }
        command = [sys.executable, "-m", "server.worker"]
        command += [str(word) for pair in arguments.items() for word in pair]
        environment = dict(os.environ) | worker_environment()
        environment["FEDAGG__LISTEN__GRPC"] = f'"{self.address}"'
        return subprocess.Popen(
            tied_to_parent(command), cwd=_ROOT, env=environment, pass_fds=(ready_fd,)
        )


@dataclass
class Cluster:
    """Two coordinators on one store."""

    folder: Path
    store: EmbeddedStore
    workers: list[Worker]
    fleet: Fleet
    connection: RedisClient

    async def start_workers(self) -> None:
        await asyncio.gather(*(w.start() for w in self.workers if w.process is None))

    async def leader(self) -> Worker:
        """The worker that holds the lease."""
        owner = await self._field("lease", "owner")
        pid = int(owner.split(":")[1])
        return next(w for w in self.workers if w.process is not None and w.pid == pid)

    async def round(self) -> tuple[int, str]:
        """Number and phase of the newest round."""
        number, phase = await self._field("round", "number"), await self._field("round", "phase")
        return int(number or 0), phase

    async def reach(self, phase: str) -> int:
        """Wait until a round enters a phase; the number of that round."""
        async with self.connection.redis.pubsub() as events, asyncio.timeout(START_S):
            await events.subscribe(events_channel(TASK))
            while (found := await self.round())[1] != phase:
                await events.get_message(ignore_subscribe_messages=True, timeout=0.05)
        return found[0]

    async def kill_leader_in(self, phase: str) -> int:
        """Kill the leader while a round is in the phase; the number of that round.

        A leader that was too fast goes on, and the next round gives another chance.
        """
        async with self.connection.redis.pubsub() as events, asyncio.timeout(START_S):
            await events.subscribe(events_channel(TASK))
            async for message in events.listen():
                if message["data"] != phase.encode():
                    continue
                leader = await self.leader()
                leader.stop_still()
                number, found = await self.round()
                if found == phase:
                    leader.kill()
                    return number
                leader.go_on()
        msg = "the subscription ended"
        raise AssertionError(msg)

    def restart_store(self) -> None:
        """Kill the store and start it on the same data."""
        pid = self.store.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        self.store.start()

    async def published(self) -> NDArray[np.float32]:
        """The newest model's rows, one per round."""
        version = int(await self._field("task", "current"))
        model = json.loads(await self._field("models", str(version)))
        path = self.folder / "data" / "blobs" / "models" / TASK / f"{model['sha256']}.safetensors"
        vector = decode_model(path.read_bytes())[0]["w"]
        assert not vector[MAX_ROUNDS * DEVICES :].any()
        return vector[: MAX_ROUNDS * DEVICES].reshape(MAX_ROUNDS, DEVICES)

    async def audited_rounds(self) -> list[int]:
        """Rounds in the audit log, once no finished round waits for its line."""
        outbox = task_prefix(TASK) + "outbox"
        async with self.connection.redis.pubsub() as events, asyncio.timeout(START_S):
            await events.subscribe(events_channel(TASK))
            while await self.connection.command("HLEN", outbox):
                await events.get_message(timeout=0.05)
        lines = (self.folder / "data" / "audit.jsonl").read_text(encoding="utf-8").splitlines()
        return sorted(json.loads(line)["round_id"] for line in lines)

    async def _field(self, key: str, name: str) -> str:
        value = await self.connection.command("HGET", task_prefix(TASK) + key, name)
        return value.decode() if isinstance(value, bytes) else ""


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[Cluster]:
    """Two coordinators and their store, serving; all of them are gone at the end."""
    model = folder / "model.safetensors"
    model.write_bytes(encode_model({"w": np.zeros(DIM, dtype=np.float32)}))
    settings = _CONFIG.format(
        data_dir=json.dumps(str(folder / "data")),
        model=json.dumps(str(model)),
        task=TASK,
        num_rounds=NUM_ROUNDS,
        goal=GOAL,
        quorum=QUORUM,
    )
    (folder / "server.toml").write_text(settings, encoding="utf-8")
    sockets = [_reserved_port() for _ in range(2)]
    with EmbeddedStore(folder / "store", durability=Durability.PROCESS) as store:
        workers = [
            Worker(index=i, folder=folder, store_url=store.url, port=held.getsockname()[1])
            for i, held in enumerate(sockets)
        ]
        connection = RedisClient(store.url)
        running = Cluster(
            folder=folder,
            store=store,
            workers=workers,
            fleet=Fleet([worker.address for worker in workers]),
            connection=connection,
        )
        try:
            await running.start_workers()
            yield running
        finally:
            running.fleet.gate.open()
            for worker in workers:
                worker.kill()
            await connection.close()
            for held in sockets:
                held.close()


def _reserved_port() -> socket.socket:
    """Hold a free port without listening on it; the workers share it, as SO_REUSEPORT allows."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(("127.0.0.1", 0))
    return held


async def _read_one(descriptor: int) -> bytes:
    """Read from a pipe without blocking the loop; empty when the other end is gone."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        with suppress(ValueError):
            loop.remove_reader(descriptor)
    return os.read(descriptor, 1)
