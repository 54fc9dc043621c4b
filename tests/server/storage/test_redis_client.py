"""The client's promises to its callers: shared round trips, one kind of failure, no stuck waits."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from server.errors import StoreUnavailable
from server.storage.redis_client import MAX_BATCH, RedisClient, StoreRefused


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[RedisClient]:
    found = RedisClient(redis_url)
    yield found
    await found.close()


def reads(url: str) -> int:
    """How often the server has read from a socket."""
    with redis.Redis.from_url(url) as observer:
        stats = observer.info("stats")
        assert isinstance(stats, dict)
        return int(stats["total_reads_processed"])


async def test_commands_of_one_turn_travel_together(client: RedisClient, redis_url: str) -> None:
    await client.command("PING")
    before = reads(redis_url)
    answers = await asyncio.gather(*(client.command("INCR", "n") for _ in range(200)))
    assert sorted(int(str(answer)) for answer in answers) == list(range(1, 201))
    assert reads(redis_url) - before < 20


async def test_a_burst_is_cut_into_batches(client: RedisClient) -> None:
    count = 2 * MAX_BATCH + 1
    answers = await asyncio.gather(*(client.command("ECHO", i) for i in range(count)))
    assert answers == [str(i).encode() for i in range(count)]


async def test_each_caller_gets_its_own_error(client: RedisClient) -> None:
    await client.command("SET", "text", "a")
    good, bad, also_good = await asyncio.gather(
        client.command("GET", "text"),
        client.command("HGET", "text", "field"),
        client.command("STRLEN", "text"),
        return_exceptions=True,
    )
    assert (good, also_good) == (b"a", 1)
    assert isinstance(bad, StoreRefused)
    assert "WRONGTYPE" in str(bad)


async def test_a_cancelled_caller_takes_nobody_with_it(client: RedisClient) -> None:
    given_up = asyncio.ensure_future(client.command("INCR", "n"))
    stays = asyncio.ensure_future(client.command("INCR", "n"))
    await asyncio.sleep(0)
    given_up.cancel()
    assert await stays in {1, 2}
    assert await client.command("PING") == b"PONG"


async def test_scripts_survive_a_server_that_forgot_them(client: RedisClient) -> None:
    for _ in range(2):
        assert await client.script("lease", "fedagg:{x}:", "owner", 1_000) == 1
        await client.command("SCRIPT FLUSH")


async def test_a_server_that_is_not_there_is_unavailable_with_a_hint(tmp_path: Path) -> None:
    client = RedisClient(f"unix://{tmp_path}/nothing.sock")
    results = await asyncio.gather(
        *(client.command("PING") for _ in range(3)), return_exceptions=True
    )
    for result in results:
        assert isinstance(result, StoreUnavailable)
        assert result.retry_after_ms > 0
    await client.close()


async def test_close_answers_whoever_waits(redis_url: str) -> None:
    client = RedisClient(redis_url)
    waiting = asyncio.ensure_future(client.command("BLPOP", "nothing", 0))
    for _ in range(3):
        await asyncio.sleep(0)
    await client.close()
    with pytest.raises(StoreUnavailable):
        await waiting


async def test_settings_of_a_server_that_hides_some(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as admin:
        admin.execute_command("ACL", "SETUSER", "shy", "on", ">word", "~*", "+@all", "-config")
    full, shy = RedisClient(redis_url), RedisClient(f"unix://shy:word@{urlsplit(redis_url).path}")
    try:
        assert (await full.settings())["appendonly"] == "yes"
        found = await shy.settings()
        assert "appendonly" not in found
        assert found["aof_enabled"] == "1"
    finally:
        await full.close()
        await shy.close()
        with redis.Redis.from_url(redis_url) as admin:
            admin.execute_command("ACL", "DELUSER", "shy")
