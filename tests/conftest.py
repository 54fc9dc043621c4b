"""Hypothesis profiles, and one real store for all tests that need one.

The default profile repeats the same few examples; `thorough` repeats more of them, `chaos` looks
for new ones.
"""

import gc
from collections.abc import Iterator

import pytest
import redis
from hypothesis import settings

from server.config.durability import Durability
from server.storage.embedded import EmbeddedStore

# No deadline: what a slow machine needs for one example says nothing about the code.
REPEATED = settings(deadline=None, derandomize=True, database=None)
settings.register_profile("repeatable", REPEATED, max_examples=25)
settings.register_profile("thorough", REPEATED, max_examples=100)
settings.register_profile("chaos", deadline=None, max_examples=5_000, print_blob=True)
settings.register_profile("races", deadline=None, print_blob=True)
settings.load_profile("repeatable")


def pytest_collection_finish() -> None:
    """Leave the modules and the tests, a million objects that stay, out of all further searches."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def store_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real store that runs as long as the tests do; what is in it, nobody knows."""
    folder = tmp_path_factory.mktemp("store")
    with EmbeddedStore(folder, durability=Durability.PROCESS) as store:
        yield store.url


@pytest.fixture
def redis_url(store_url: str) -> str:
    """URL of a real store that is empty."""
    with redis.Redis.from_url(store_url) as client:
        client.flushall()
    return store_url
