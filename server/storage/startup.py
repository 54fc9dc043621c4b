"""What a coordinator asks of its stores before it serves."""

import asyncio
import secrets
import time
from typing import Final

from monitoring.logs import get_logger
from server.config import ConfigError, ServerConfig
from server.errors import StoreUnavailable
from server.round.blob_names import installation_blob
from server.storage.blobs import BlobStore
from server.storage.embedded import durability_problem
from server.storage.redis_client import RedisClient
from server.storage.redis_store import RedisRoundStore

STORE_WAIT_S: Final = 30.0
STORE_RETRY_S: Final = 0.2

_log = get_logger(__name__)


async def await_store(store: RedisRoundStore) -> None:
    """Wait until the round store answers.

    Raises:
        StoreUnavailable: if it does not in `STORE_WAIT_S`.
    """
    deadline = time.monotonic() + STORE_WAIT_S
    while True:
        try:
            await store.ping()
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(STORE_RETRY_S)
        else:
            return


async def check_durability(client: RedisClient, config: ServerConfig) -> None:
    """Refuse a round store that may lose what it acknowledged, unless the settings allow it.

    Raises:
        ConfigError: naming the setting of the store.
    """
    settings = await client.settings()
    if settings.get("cluster_enabled") == "1":
        msg = "store.url: a Redis Cluster is not supported: give the URL of one server"
        raise ConfigError(msg)
    problem = durability_problem(settings, config.store.durability)
    if problem is None:
        return
    if not config.store.allow_weaker_durability:
        msg = f"store.durability: {problem}; set store.allow-weaker-durability = true to serve"
        raise ConfigError(msg)
    _log.warning("weaker_durability", problem=problem)


async def check_installation(
    store: RedisRoundStore, blobs: BlobStore, config: ServerConfig
) -> None:
    """Refuse stores that do not belong together: a leader would miss payloads it has receipts for.

    The blob is written before the name is claimed, so that whoever reads the name finds the blob.

    Raises:
        ConfigError: if the blob store is not the one that the round store's payloads lie in.
    """
    mine = secrets.token_hex(8)
    await blobs.put(installation_blob(mine), b"")
    name = await store.claim_installation(mine)
    if name == mine:
        return
    await blobs.delete(installation_blob(mine))
    if await blobs.size(installation_blob(name)) is None:
        msg = (
            f"store.blobs: {config.blob_url} does not hold the payloads of the round store's "
            f"installation {name}; all coordinators must share one blob store"
        )
        raise ConfigError(msg)
