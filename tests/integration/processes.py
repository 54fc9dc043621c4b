"""Coordinators and a store as processes that can be killed."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from server.config.durability import Durability
from server.processes.child_process import tied_to_parent
from server.processes.supervisor import worker_environment
from server.round.blob_names import model_blob
from server.storage.embedded import EmbeddedStore
from server.storage.keys import events_channel, task_prefix
from server.storage.redis_client import RedisClient
from tests.integration.fleet import DEVICES, PATIENCE_S, TASK, Fleet
from updates.vectors import decode_model, encode_model

NUM_ROUNDS: Final = 5
MAX_ROUNDS: Final = 64
GOAL: Final = 6
QUORUM: Final = 4
# So large that updates travel in chunks and no phase is over in an instant.
DIM: Final = 1_000_000

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

    async def start(self, *, patience_s: float = PATIENCE_S) -> None:
        """Start the process and wait until it serves."""
        ready, told = os.pipe()
        try:
            self.process = self._spawn(told)
            os.close(told)
            async with asyncio.timeout(patience_s):
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
    """Two coordinators on one store, with a task of so many rounds."""

    folder: Path
    num_rounds: int
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
        async with self.connection.redis.pubsub() as events, asyncio.timeout(PATIENCE_S):
            await events.subscribe(events_channel(TASK))
            while (found := await self.round())[1] != phase:
                await events.get_message(ignore_subscribe_messages=True, timeout=0.05)
        return found[0]

    async def kill_leader_in(self, phase: str) -> None:
        """Kill the leader while a round is in the phase.

        A leader that was too fast goes on, and the next round gives another chance.
        """
        # Validation is short: the leader is led into it in small steps.
        watched = "aggregating" if phase == "validating" else phase
        async with self.connection.redis.pubsub() as events, asyncio.timeout(PATIENCE_S):
            await events.subscribe(events_channel(TASK))
            async for message in events.listen():
                if message["data"] != watched.encode():
                    continue
                leader = await self.leader()
                leader.stop_still()
                while (await self.round())[1] == watched != phase:
                    leader.go_on()
                    await self.connection.command("PING")
                    leader.stop_still()
                if (await self.round())[1] == phase and await self.leader() is leader:
                    leader.kill()
                    return
                leader.go_on()

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
        key = model_blob(TASK, model["round_number"], model["sha256"])
        path = self.folder / "data" / "blobs" / key
        vector = decode_model(path.read_bytes())[0]["w"]
        assert not vector[MAX_ROUNDS * DEVICES :].any()
        return vector[: MAX_ROUNDS * DEVICES].reshape(MAX_ROUNDS, DEVICES)

    async def audited_rounds(self) -> list[int]:
        """Rounds in the audit log, once no finished round waits for its line."""
        outbox = task_prefix(TASK) + "outbox"
        async with self.connection.redis.pubsub() as events, asyncio.timeout(PATIENCE_S):
            await events.subscribe(events_channel(TASK))
            while await self.connection.command("HLEN", outbox):
                await events.get_message(timeout=0.05)
        lines = (self.folder / "data" / "audit.jsonl").read_text(encoding="utf-8").splitlines()
        return sorted(json.loads(line)["round_id"] for line in lines)

    async def _field(self, key: str, name: str) -> str:
        value = await self.connection.command("HGET", task_prefix(TASK) + key, name)
        return value.decode() if isinstance(value, bytes) else ""


@asynccontextmanager
async def cluster(folder: Path, *, num_rounds: int = NUM_ROUNDS) -> AsyncIterator[Cluster]:
    """Two coordinators and their store, serving; all of them are gone at the end."""
    model = folder / "model.safetensors"
    model.write_bytes(encode_model({"w": np.zeros(DIM, dtype=np.float32)}))
    settings = _CONFIG.format(
        data_dir=json.dumps(str(folder / "data")),
        model=json.dumps(str(model)),
        task=TASK,
        num_rounds=num_rounds,
        goal=GOAL,
        quorum=QUORUM,
    )
    (folder / "server.toml").write_text(settings, encoding="utf-8")
    sockets = [reserved_port() for _ in range(2)]
    with EmbeddedStore(folder / "store", durability=Durability.PROCESS) as store:
        workers = [
            Worker(index=i, folder=folder, store_url=store.url, port=held.getsockname()[1])
            for i, held in enumerate(sockets)
        ]
        connection = RedisClient(store.url)
        running = Cluster(
            folder=folder,
            num_rounds=num_rounds,
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


def reserved_port() -> socket.socket:
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
