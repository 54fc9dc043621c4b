"""What a coordinator asks of its stores before it serves."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from server.config import ConfigError, ServerConfig, parse_config
from server.config.durability import Durability
from server.errors import StoreUnavailable
from server.storage import startup
from server.storage.blobs import BlobStore
from server.storage.redis_client import RedisClient
from server.storage.redis_store import RedisRoundStore
from server.storage.startup import await_store, check_durability, check_installation


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[RedisClient]:
    found = RedisClient(redis_url)
    yield found
    await found.close()


def configured(**store: object) -> ServerConfig:
    local = "127.0.0.1:0"
    return parse_config(
        {
            "listen": {"grpc": local, "http": local, "metrics": local},
            "tls": {"insecure": True},
            "store": store,
            "task": [{"name": "t", "initial-model": "m"}],
        },
        {},
    )


@contextmanager
def blobs_in(folder: Path) -> Iterator[BlobStore]:
    found = BlobStore(str(folder), durability=Durability.PROCESS, num_threads=1)
    try:
        yield found
    finally:
        found.close()


@contextmanager
def changed(url: str, name: str, value: str) -> Iterator[None]:
    """Run the store under another setting."""
    with redis.Redis.from_url(url) as store:
        before = store.config_get(name)[name]
        store.config_set(name, value)
        try:
            yield
        finally:
            store.config_set(name, before)


class StartingStore(RedisRoundStore):
    """Answers from its third call on."""

    def __init__(self) -> None:  # of a store, nothing but whether it answers
        self.calls = 0

    async def ping(self) -> None:
        self.calls += 1
        if self.calls < 3:
            raise StoreUnavailable("loading")


async def test_a_store_that_is_starting_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "STORE_RETRY_S", 0.0)
    store = StartingStore()
    await await_store(store)
    assert store.calls == 3


async def test_a_store_that_never_answers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "STORE_WAIT_S", -1.0)
    store = StartingStore()
    with pytest.raises(StoreUnavailable, match="loading"):
        await await_store(store)
    assert store.calls == 1


async def test_a_store_that_may_lose_writes_is_refused_unless_allowed(
    client: RedisClient, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with changed(redis_url, "appendfsync", "everysec"):
        with pytest.raises(ConfigError, match="appendfsync is everysec"):
            await check_durability(client, configured())
        assert not caplog.records
        await check_durability(client, configured(**{"allow-weaker-durability": True}))
    assert [record.message for record in caplog.records] == ["weaker_durability"]


async def test_a_store_that_may_evict_is_refused(client: RedisClient, redis_url: str) -> None:
    with (
        changed(redis_url, "maxmemory-policy", "allkeys-lru"),
        pytest.raises(ConfigError, match="maxmemory-policy is allkeys-lru"),
    ):
        await check_durability(client, configured())


async def test_blobs_of_another_installation_are_refused(
    client: RedisClient, tmp_path: Path
) -> None:
    store, config = RedisRoundStore(client), configured()
    with blobs_in(tmp_path / "first") as blobs:
        await check_installation(store, blobs, config)
        await check_installation(store, blobs, config)
    other = tmp_path / "second"
    with (
        blobs_in(other) as blobs,
        pytest.raises(ConfigError, match="all coordinators must share one blob store"),
    ):
        await check_installation(store, blobs, config)
    assert not [path for path in other.rglob("*") if path.is_file()]
