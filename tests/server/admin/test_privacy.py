"""What the admin API says of a task's privacy, from the real ledger and the real accountant."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from privacy import renyi_accountant
from privacy.budget import ACCOUNTANTS
from privacy.charge import Charge, Sampling
from server.admin.store_backend import StoreBackend
from server.config import PlanConfig, TaskConfig
from server.config.durability import Durability
from server.config.privacy_config import PrivacyConfig
from server.errors import UnknownTask
from server.models.model_catalog import ModelCatalog
from server.privacy.private_task import private_task
from server.processes.thread_pool import Workers
from server.round.ports import ModelVersion
from server.storage.blobs import BlobStore
from server.storage.keys import task_prefix
from server.storage.redis_client import RedisClient
from server.storage.redis_store import RedisRoundStore
from server.task.resolving import task_info
from server.task.task_info import TaskDirectory

TASK: Final = "digits"
DELTA: Final = 1e-5
CHARGE: Final = Charge(noise_multiplier=2.0, sampling=Sampling.POISSON, sampling_probability=0.05)
SETTINGS: Final = {
    "noise": "central",
    "noise_multiplier": 2.0,
    "sampling": "poisson",
    "sampling_probability": 0.05,
    "population": 200,
    "epsilon": 2.0,
}
FIRST: Final = ModelVersion(
    version=1,
    parent=None,
    round_number=None,
    sha256="00",
    size_bytes=1,
    dim=3,
    created_at_ms=0,
    metrics={},
)

MakeBackend = Callable[..., StoreBackend]


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[RedisClient]:
    found = RedisClient(redis_url)
    await RedisRoundStore(found).create_task(TASK, model=FIRST, num_rounds=500)
    yield found
    await found.close()


@pytest.fixture
def backend(client: RedisClient, tmp_path: Path) -> Iterator[MakeBackend]:
    workers = Workers("test", threads=1)
    stack = ExitStack()

    def make(**settings: object) -> StoreBackend:
        config = TaskConfig(
            name=TASK,
            initial_model=tmp_path / "unused",
            num_rounds=500,
            plan=PlanConfig(clipping_norm=0.5),
            privacy=PrivacyConfig.model_validate(settings),
        )
        private = {}
        if config.privacy.is_on:
            private = {TASK: private_task(config, dim=3, workers=workers)}
        store = RedisRoundStore(client)
        blobs = BlobStore(str(tmp_path), durability=Durability.PROCESS, num_threads=1)
        stack.callback(blobs.close)
        return StoreBackend(
            rounds=store,
            ledger=store,
            registry=store,
            tasks=TaskDirectory([task_info(config, dim=3)]),
            models=ModelCatalog(registry=store, rounds=store, blobs=blobs, cache_bytes=0),
            on_rollback=lambda *_: None,
            replayers={},
            private=private,
        )

    with stack:
        yield make
    workers.close()


async def write(client: RedisClient, key: str, *pairs: str | int) -> None:
    await client.command("HSET", task_prefix(TASK) + key, *pairs)


async def test_a_private_task_tells_its_budget_and_what_is_spent(
    client: RedisClient, backend: MakeBackend
) -> None:
    await write(client, "charges", CHARGE.to_text(), 10)
    await write(client, "reserved", 11, CHARGE.to_text())
    await write(client, "task", "published", 9)
    await write(client, "privacy", "published", 9, "revision", 20, "max_participations", 4)
    await write(client, "participations", 1, 7, 4, 1)
    found = await backend(**SETTINGS).privacy(TASK)
    spent = {
        accountant: renyi_accountant.epsilon_of({CHARGE: 11}, DELTA, accountant)
        for accountant in ACCOUNTANTS
    }
    assert (found.epsilon_spent, found.epsilon_by_accountant) == (spent["pld"], spent)
    assert (found.epsilon_budget, found.delta, found.accountant) == (2.0, DELTA, "pld")
    assert (found.rounds_committed, found.rounds_reserved) == (10, 1)
    most = renyi_accountant.max_releases(CHARGE, epsilon=2.0, delta=DELTA)
    assert found.rounds_remaining == min(most - 11, 491)
    assert found.participations == {1: 7, 4: 1}
    assert found.charge == CHARGE.to_text()
    assert (found.noise, found.sampling, found.mechanism) == ("central", "poisson", "gaussian")
    assert (found.noise_multiplier, found.clipping_norm) == (2.0, 0.5)
    assert (found.budget_exhausted, found.uncharged_versions) == (False, 0)


async def test_a_task_that_is_not_private_says_so(
    client: RedisClient, backend: MakeBackend
) -> None:
    await write(client, "participations", 1, 3)
    await write(client, "task", "published", 2)
    found = await backend().privacy(TASK)
    assert (found.noise, found.charge, found.noise_multiplier) == ("none", None, None)
    assert (found.epsilon_spent, found.epsilon_by_accountant) == (None, {})
    assert (found.participations, found.rounds_remaining) == ({1: 3}, 498)


async def test_no_epsilon_is_told_where_no_bound_holds(
    client: RedisClient, backend: MakeBackend
) -> None:
    await write(client, "task", "published", 1)
    found = await backend(**SETTINGS).privacy(TASK)
    assert found.epsilon_spent is None
    assert found.epsilon_by_accountant == {"pld": None, "rdp": None}
    assert (found.uncharged_versions, found.rounds_remaining) == (1, 0)


async def test_an_exhausted_budget_is_told(client: RedisClient, backend: MakeBackend) -> None:
    await write(client, "privacy", "exhausted", 1)
    made = backend(**SETTINGS)
    assert (await made.privacy(TASK)).budget_exhausted
    assert (await made.task_status(TASK)).budget_exhausted
    assert [task.budget_exhausted for task in await made.list_tasks()] == [True]


async def test_the_noise_key_is_told_to_nobody(client: RedisClient, backend: MakeBackend) -> None:
    key = await RedisRoundStore(client).noise_key(TASK)
    made = backend(**SETTINGS)
    told = "".join(
        answer.model_dump_json()
        for answer in (await made.privacy(TASK), await made.task_status(TASK))
    )
    assert key.hex() not in told
    assert not any(repr(part) in told for part in (key, key.decode("latin1")))


async def test_an_unknown_task_has_no_privacy(backend: MakeBackend) -> None:
    with pytest.raises(UnknownTask):
        await backend().privacy("other")
