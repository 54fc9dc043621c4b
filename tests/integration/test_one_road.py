"""The aggregator's state through a real coordinator: optimizers, rules that remember, replay."""

import asyncio
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from aggregators.aggregator_state import decode_state
from aggregators.rules.aegis import AegisState, aegis
from aggregators.rules.centered_clipping import centered_clipping
from tests.integration.service import TASK, Service, header, serving
from updates.codec import encode_dense
from updates.vectors import decode_model

DIM: Final = 12
GOAL: Final = 4
NUM_ROUNDS: Final = 3

Vector = NDArray[np.float32]
Floats = NDArray[np.float64]


def task_of(**settings: object) -> dict[str, object]:
    return {"reporting-goal": GOAL, "num-rounds": 20} | settings


def rows_of(number: int) -> Vector:
    rng = np.random.default_rng(number)
    return (0.3 + 0.1 * rng.standard_normal((GOAL, DIM))).astype(np.float32)


async def contribute(
    service: Service, number: int, rows: Vector, *, base: int | None = None
) -> None:
    """Take one round through; the first device sends its update in chunks, the others inline."""
    devices = [f"d{i}" for i in range(len(rows))]
    assignments = await service.open_round(*devices, check_in_id=f"c{number}")
    for device, row, assignment in zip(devices, rows, assignments, strict=True):
        assert base is None or assignment.model_version == base
        payload = encode_dense(row)
        head = header(
            device,
            payload,
            round_number=assignment.round,
            model_version=assignment.model_version,
            submission_id=f"s{number}",
        )
        if device == "d0":
            await service.stream(head, payload[:20], payload[20:])
        else:
            await service.inline(head, payload)
    record = await service.finished(number)
    assert record["decision"] == "published", record


async def weights_of(service: Service, version: int) -> Vector:
    tensors, _ = decode_model(await service.fetch(version))
    return np.concatenate([tensor.ravel() for tensor in tensors.values()])


class Formula:
    """A server optimizer as its paper writes it, by numpy."""

    def __init__(self, name: str, *, eta: float, b1: float, b2: float, tau: float) -> None:
        self.name, self.eta, self.b1, self.b2, self.tau = name, eta, b1, b2, tau
        self.x, self.m = np.zeros(DIM), np.zeros(DIM)
        self.v = np.full(DIM, tau * tau)

    def step(self, rows: Vector) -> Vector:
        delta = rows.astype(np.float64).mean(axis=0).astype(np.float32).astype(np.float64)
        square = delta * delta
        if self.name == "fedavg":
            self.x = self.x + self.eta * delta
            return self.x.astype(np.float32)
        if self.name == "fedavgm":
            self.m = self.b1 * self.m + delta
            self.x = self.x + self.eta * self.m
            return self.x.astype(np.float32)
        self.m = self.b1 * self.m + (1 - self.b1) * delta
        if self.name == "fedadagrad":
            self.v = self.v + square
        elif self.name == "fedadam":
            self.v = self.b2 * self.v + (1 - self.b2) * square
        else:
            self.v = self.v - (1 - self.b2) * square * np.sign(self.v - square)
        self.x = self.x + self.eta * self.m / (np.sqrt(self.v) + self.tau)
        return self.x.astype(np.float32)


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
async def test_a_server_optimizer_goes_on_where_another_coordinator_stopped(
    name: str, tmp_path: Path, redis_url: str
) -> None:
    aggregation: dict[str, object] = {"server-optimizer": name, "server-learning-rate": 0.5}
    if name != "fedavg":
        aggregation["server-momentum"] = 0.7
    if name in {"fedadam", "fedyogi"}:
        aggregation["server-beta2"] = 0.9
    if name in {"fedadagrad", "fedadam", "fedyogi"}:
        aggregation["server-adaptivity"] = 0.01
    formula = Formula(name, eta=0.5, b1=0.7, b2=0.9, tau=0.01)
    for number in range(1, NUM_ROUNDS + 1):  # each round by a process of its own
        async with serving(
            tmp_path, redis_url, task=task_of(aggregation=aggregation), dim=DIM
        ) as service:
            await contribute(service, number, rows_of(number))
            # The mean may round the other way once: float64 against compensated sums.
            np.testing.assert_allclose(
                await weights_of(service, number + 1), formula.step(rows_of(number)), rtol=1e-6
            )


async def test_a_rollback_restores_the_state_of_its_version(tmp_path: Path, redis_url: str) -> None:
    task = task_of(aggregation={"server-optimizer": "fedavgm"})
    formula = Formula("fedavgm", eta=1.0, b1=0.9, b2=0.0, tau=1.0)
    async with serving(tmp_path, redis_url, task=task, dim=DIM) as service:
        await contribute(service, 1, rows_of(1))
        formula.step(rows_of(1))
        await contribute(service, 2, rows_of(2))
        await service.post(f"/api/v1/tasks/{TASK}/models/2/rollback", {})
        # The round that had begun from version 3 is abandoned.
        assert (await service.finished(3))["decision"] == "abandoned"
        await contribute(service, 4, rows_of(4), base=2)
        np.testing.assert_allclose(
            await weights_of(service, 4), formula.step(rows_of(4)), rtol=1e-6
        )


def by_aegis(rows: Vector, state: AegisState | None) -> tuple[Vector, AegisState]:
    result = aegis(
        rows, state=state, num_samples=np.full(GOAL, 10.0), keys=[f"d{i}" for i in range(GOAL)]
    )
    assert isinstance(result.state, AegisState)
    return result.vector, result.state


def by_centered_clipping(rows: Vector, center: Vector | None) -> tuple[Vector, Vector]:
    vector = centered_clipping(rows, center=center).vector
    return vector, vector


@pytest.mark.parametrize(
    ("rule", "reference"),
    [("aegis", by_aegis), ("centered-clipping", by_centered_clipping)],
)
async def test_rules_remember_from_round_to_round(
    rule: str,
    reference: Callable[[Vector, Any], tuple[Vector, Any]],
    tmp_path: Path,
    redis_url: str,
) -> None:
    memory: object = None
    expected: Floats = np.zeros(DIM)
    for number in range(1, NUM_ROUNDS + 1):
        rows = rows_of(number)
        rows[2] *= -1.0
        async with serving(
            tmp_path, redis_url, task=task_of(aggregation={"rule": rule}), dim=DIM
        ) as service:
            await contribute(service, number, rows)
            vector, memory = reference(rows, memory)
            expected = expected + vector
            np.testing.assert_array_equal(
                await weights_of(service, number + 1), expected.astype(np.float32)
            )
            model = await service.get(f"/api/v1/tasks/{TASK}/models/{number + 1}")
            path = (
                tmp_path
                / "data/blobs/states"
                / TASK
                / f"{number:08d}-{model['state_sha256']}.safetensors"
            )
            state = decode_state(path.read_bytes())
            np.testing.assert_array_equal(state.weights, expected)
            assert (state.rule if rule == "aegis" else state.center) is not None


async def test_a_rule_that_too_few_updates_came_for_gives_way_where_it_may(
    tmp_path: Path, redis_url: str
) -> None:
    aggregation = {"rule": "bulyan", "num-malicious-nodes": 1, "may-degrade": True}
    async with serving(
        tmp_path, redis_url, task=task_of(aggregation=aggregation), dim=DIM
    ) as service:
        await contribute(service, 1, rows_of(1))
        assert (await service.finished(1))["metrics"]["degraded"] == 1.0


async def replayed(service: Service, number: int) -> tuple[int, dict[str, Any]]:
    url = f"http://127.0.0.1:{service.server.http_port}/api/v1/tasks/{TASK}/rounds/{number}/replay"
    async with httpx.AsyncClient(timeout=30.0) as client:
        answer = await client.post(url)
    return answer.status_code, answer.json()


@pytest.mark.parametrize(
    "settings",
    [
        {"aggregation": {"rule": "aegis", "server-optimizer": "fedadam"}},
        {"compression": {"method": "dense", "value-type": "float32"}},
    ],
    ids=["stateful", "plain"],
)
async def test_kept_rounds_lead_to_the_same_bytes_and_others_are_gone(
    settings: dict[str, object], tmp_path: Path, redis_url: str
) -> None:
    task = task_of(**{"keep-contributions": 2}, **settings)
    sections = {"limits": {"inline-max-bytes": 1024}}
    async with serving(tmp_path, redis_url, task=task, sections=sections, dim=DIM) as service:
        for number in range(1, 5):
            await contribute(service, number, rows_of(number))
            await service.audited(number)
        for number in (3, 4):
            status, found = await replayed(service, number)
            assert status == 200, found
            assert found["is_same"]
            assert found["contributions"] == GOAL
            published = await service.fetch(number + 1)
            assert found["rebuilt_sha256"] == hashlib.sha256(published).hexdigest()
            assert found["rebuilt_state_sha256"] == found["state_sha256"]
        for number, reason in ((1, "ROUND_PURGED"), (2, "ROUND_PURGED"), (9, "UNKNOWN_ROUND")):
            status, found = await replayed(service, number)
            assert status in {404, 409}
            assert found["reason"] == reason
        updates = tmp_path / "data/blobs/updates" / TASK
        assert {path.name for path in updates.iterdir()} == {"00000003", "00000004"}


async def test_a_replay_notices_what_was_altered_and_the_command_fails(
    tmp_path: Path, redis_url: str
) -> None:
    task = task_of(**{"keep-contributions": 5})
    async with serving(tmp_path, redis_url, task=task, dim=DIM) as service:
        for number in (1, 2):
            await contribute(service, number, rows_of(number))
        assert await command(service, "1") == 0
        (kept,) = (tmp_path / "data/blobs/updates" / TASK / "00000001/kept").iterdir()
        data = bytearray(kept.read_bytes())
        data[-2] ^= 1  # of the last inline payload
        kept.write_bytes(data)
        assert await command(service, "1") == 1
        assert await command(service, "2") == 0
        kept.write_bytes(data[:100])
        assert await command(service, "1") == 1
        assert await command(service, "7") == 5


async def command(service: Service, number: str) -> int:
    url = f"http://127.0.0.1:{service.server.http_port}"
    line = ("-m", "cli.main", "admin", "rounds", "replay", number, "--url", url)
    process = await asyncio.create_subprocess_exec(
        sys.executable, *line, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    await process.communicate()
    assert process.returncode is not None
    return process.returncode
