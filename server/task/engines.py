"""The engines that tasks compute with."""

from contextlib import AsyncExitStack

from aggregators.engines.engine import Engine, make_engine
from aggregators.engines.engine_options import EngineOptions
from aggregators.errors import AggregationError
from aggregators.kernels.threads import num_cores
from server.config import ConfigError, ServerConfig


def open_engines(config: ServerConfig, resources: AsyncExitStack) -> dict[str, Engine]:
    """Open what the tasks compute with, one engine of a name for all; closed with `resources`.

    Not in a thread of its own, though it takes seconds: Ray's processes end with the thread that
    started them. Nobody is served yet.

    Raises:
        ConfigError: if an engine cannot be opened.
    """
    settings = config.engines
    options = EngineOptions(
        # One core is left to the event loop: check-ins go on while models are made.
        num_threads=max(1, num_cores() - 1),
        torch_device=settings.torch_device,
        ray_address=settings.ray_address,
        ray_workers=settings.ray_workers,
    )
    engines: dict[str, Engine] = {}
    for number, task in enumerate(config.tasks, start=1):
        name = task.aggregation.engine
        if name in engines:
            continue
        try:
            engines[name] = make_engine(name, options)
        except AggregationError as error:
            msg = f"task[{number}].aggregation.engine: {error}"
            raise ConfigError(msg) from error
        resources.callback(engines[name].close)
    return engines
