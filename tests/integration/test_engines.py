"""A task on each engine beside the same task on the local one: the versions have the same bytes."""

import asyncio
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import psutil
import pytest
import redis

from aggregators.engines.engine_options import LIBRARIES
from aggregators.kernels.cell_products import CELL_COLUMNS
from client import ClientConfig, MobileClient, Plan, RetryPolicy, TrainingResult, Weights
from server.config.durability import Durability
from server.storage.embedded import EmbeddedStore
from server.storage.keys import task_prefix
from tests.integration.processes import Worker, reserved_port
from updates.vectors import encode_model

# A cluster starts within half a minute of quiet, and of a busy machine's minutes.
pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(400)]

NUM_ROUNDS: Final = 2
DEVICES: Final = 5
DIM: Final = 3 * CELL_COLUMNS + 37
PATIENCE_S: Final = 240.0
LOOPBACK: Final = {"127.0.0.1", "::ffff:127.0.0.1", "::1"}

_CONFIG: Final = """
[tls]
insecure = true
[listen]
http = "127.0.0.1:0"
metrics = "127.0.0.1:0"
[store]
data-dir = {data_dir}
[engines]
torch-device = "cpu"
ray-workers = 2
"""
_TASK: Final = """
[[task]]
name = "{name}"
initial-model = {model}
num-rounds = {num_rounds}
reporting-goal = {devices}
over-selection = 1.0
[task.aggregation]
rule = "{rule}"
num-malicious-nodes = 1
engine = "{engine}"
"""
# Ranks, averages, and weights that are not whole: what engines do in ways of their own.
RULES: Final = ("nnm+trimmed-mean", "geometric-median")


@dataclass(frozen=True)
class Drawing:
    """Adds what its device draws in that round."""

    device: int

    def train(
        self,
        weights: Weights,
        plan: Plan,
        should_stop: Callable[[], bool],  # noqa: ARG002  # of the protocol
    ) -> TrainingResult:
        drawn = np.random.default_rng((self.device, plan.round)).standard_normal(DIM)
        trained = weights["w"] + drawn.astype(np.float32)
        return TrainingResult(weights={"w": trained}, num_samples=1 + self.device)


async def run_devices(address: str, task: str) -> None:
    """Take a task to its end."""

    async def run(device: int) -> int:
        config = ClientConfig(
            servers=(address,),
            task=task,
            device_id=f"d{device}",
            insecure=True,
            progress_interval_s=None,
            retry=RetryPolicy(initial_s=0.05, max_s=0.5, total_s=PATIENCE_S),
        )
        async with MobileClient(config, Drawing(device)) as client:
            return await client.run()

    assert await asyncio.gather(*map(run, range(DEVICES))) == [NUM_ROUNDS] * DEVICES


def versions(store_url: str, task: str) -> list[str]:
    with redis.Redis.from_url(store_url) as store:
        models = store.hgetall(task_prefix(task) + "models")
    found = {int(number): json.loads(model)["sha256"] for number, model in models.items()}
    return [found[number] for number in sorted(found)]


def listening(processes: list[psutil.Process]) -> set[str]:
    """Addresses that processes accept connections on."""
    pids = {process.pid for process in processes}
    return {
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.pid in pids and connection.laddr and connection.status == psutil.CONN_LISTEN
    }


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(name, marks=[pytest.mark.long] if name == "ray" else [])
        for name in LIBRARIES
        if name != "local"
    ],
)
async def test_versions_have_the_bytes_of_the_local_engine(tmp_path: Path, engine: str) -> None:
    if find_spec(LIBRARIES[engine]) is None:
        pytest.skip(f"{engine} is not installed")
    model = tmp_path / "model.safetensors"
    model.write_bytes(encode_model({"w": np.zeros(DIM, dtype=np.float32)}))
    names = {
        (name, rule): f"{name}-{at}" for name in ("local", engine) for at, rule in enumerate(RULES)
    }
    tasks = [
        _TASK.format(
            name=task,
            model=json.dumps(str(model)),
            num_rounds=NUM_ROUNDS,
            devices=DEVICES,
            rule=rule,
            engine=name,
        )
        for (name, rule), task in names.items()
    ]
    settings = _CONFIG.format(data_dir=json.dumps(str(tmp_path / "data"))) + "".join(tasks)
    (tmp_path / "server.toml").write_text(settings, encoding="utf-8")
    with (
        EmbeddedStore(tmp_path / "store", durability=Durability.PROCESS) as store,
        reserved_port() as held,
    ):
        worker = Worker(index=0, folder=tmp_path, store_url=store.url, port=held.getsockname()[1])
        try:
            await worker.start(patience_s=PATIENCE_S)
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(
                    *(run_devices(worker.address, task) for task in names.values())
                )
            process = psutil.Process(worker.pid)
            children = process.children(recursive=True)
            assert bool(children) == (engine == "ray")
            assert listening([process, *children]) <= LOOPBACK
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=PATIENCE_S) == 0, worker.log.read_text()
            _, alive = psutil.wait_procs(children, timeout=30)
            assert not alive
        finally:
            worker.kill()
        for rule in RULES:
            expected = versions(store.url, names["local", rule])
            assert len(set(expected)) == 1 + NUM_ROUNDS
            assert versions(store.url, names[engine, rule]) == expected
