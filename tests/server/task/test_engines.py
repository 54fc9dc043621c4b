"""The engines that tasks compute with, opened once and closed with everything else."""

from contextlib import AsyncExitStack

import pytest

from server.config import ConfigError, EnginesConfig, ServerConfig, parse_config
from server.task.engines import open_engines


def configured(*engines: str, torch_device: str = "cpu") -> ServerConfig:
    tasks = [
        {"name": f"t{number}", "initial-model": "m", "aggregation": {"engine": engine}}
        for number, engine in enumerate(engines)
    ]
    config = parse_config({"tls": {"insecure": True}, "task": tasks}, {})
    return config.model_copy(update={"engines": EnginesConfig(torch_device=torch_device)})


async def test_tasks_of_one_engine_share_it() -> None:
    async with AsyncExitStack() as resources:
        assert list(open_engines(configured("local", "local"), resources)) == ["local"]


async def test_a_device_that_is_not_there_is_told_at_the_start() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    async with AsyncExitStack() as resources:
        with pytest.raises(
            ConfigError, match=r"task\[2\].aggregation.engine: engine torch: device 'cuda:77'"
        ):
            open_engines(configured("local", "torch", torch_device="cuda:77"), resources)
        assert list(open_engines(configured("local", "torch"), resources)) == ["local", "torch"]
