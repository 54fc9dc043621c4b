"""What a coordinator refuses to start on, and why."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import redis

from server.app import build_server
from server.config import ConfigError, ServerConfig, parse_config
from updates.vectors import encode_model

Write = Callable[[int], Path]


@pytest.fixture
def write_model(tmp_path: Path) -> Write:
    def write(dim: int) -> Path:
        path = tmp_path / f"model-{dim}.safetensors"
        path.write_bytes(encode_model({"w": np.zeros(dim, np.float32)}))
        return path

    return write


def configured(folder: Path, model: Path, **task: object) -> ServerConfig:
    local = "127.0.0.1:0"
    return parse_config(
        {
            "listen": {"grpc": local, "http": local, "metrics": local},
            "tls": {"insecure": True},
            "store": {"data-dir": str(folder)},
            "task": [{"name": "t", "initial-model": str(model)} | task],
        },
        {},
    )


async def start_and_stop(config: ServerConfig, url: str) -> None:
    server = await build_server(config, store_url=url)
    await server.start()
    await server.stop()


async def test_a_coordinator_starts_again_on_its_own_stores(
    redis_url: str, tmp_path: Path, write_model: Write
) -> None:
    config = configured(tmp_path / "data", write_model(3))
    await start_and_stop(config, redis_url)
    await start_and_stop(config, redis_url)


async def test_blobs_of_another_installation_are_refused(
    redis_url: str, tmp_path: Path, write_model: Write
) -> None:
    model = write_model(3)
    await start_and_stop(configured(tmp_path / "first", model), redis_url)
    with pytest.raises(ConfigError, match="all coordinators must share one blob store"):
        await build_server(configured(tmp_path / "second", model), store_url=redis_url)


async def test_a_store_that_may_lose_writes_is_refused_unless_allowed(
    redis_url: str, tmp_path: Path, write_model: Write
) -> None:
    config = configured(tmp_path / "data", write_model(3))
    allowed = config.model_copy(
        update={"store": config.store.model_copy(update={"allow_weaker_durability": True})}
    )
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("appendfsync", "everysec")
        try:
            with pytest.raises(ConfigError, match="appendfsync is everysec"):
                await build_server(config, store_url=redis_url)
            await start_and_stop(allowed, redis_url)
        finally:
            client.config_set("appendfsync", "no")


@pytest.mark.parametrize(
    ("aggregation", "message"),
    [
        ({"rule": "krumm"}, "krumm"),
        ({"rule": "multi-krum", "num-nodes-to-select": 0}, "num-nodes-to-select"),
    ],
)
async def test_a_rule_that_cannot_be_is_named(
    tmp_path: Path, write_model: Write, aggregation: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        await build_server(
            configured(tmp_path / "data", write_model(3), aggregation=aggregation),
            store_url="redis://127.0.0.1:1",
        )


async def test_a_model_that_is_none_is_named(redis_url: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not a model")
    with pytest.raises(ConfigError, match=r"^task\[1\]\.initial-model: .* is no whole safetensors"):
        await build_server(configured(tmp_path / "data", path), store_url=redis_url)
    with pytest.raises(ConfigError, match=r"^task\[1\]\.initial-model: .*No such file"):
        await build_server(configured(tmp_path / "data", tmp_path / "absent"), store_url=redis_url)
