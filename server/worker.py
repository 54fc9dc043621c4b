"""One coordinator process: `python -m server.worker --config FILE [--store-url URL]`.

Serves until SIGTERM or SIGINT, answers what is under way and ends. `fedagg serve` starts as many
as it is told to on the same addresses, from one template; see `server.processes.template`.

Exit status: 0 stopped when asked, 1 could not start, 2 wrong arguments, 3 wrong configuration. A
failed start is told on standard error, one line a problem.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from server.admin.routes import admin_routes
from server.app import build_server
from server.config import EMBEDDED, ConfigError, ServerConfig, load_config
from server.config.host import require_free_addresses
from server.processes.compiling import compiles
from server.processes.process_end import end_process
from server.processes.worker_process import (
    RunningServer,
    WorkerArguments,
    argument_parser,
    run_worker,
)
from server.task.preloading import preload_task


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorArguments(WorkerArguments):
    """What a coordinator is told besides.

    Attributes:
        store_url: where the round store answers; empty: as configured.
    """

    store_url: str = ""


def preload(arguments: Sequence[str]) -> bool:
    """Load, in a template, what the configured tasks need; what is wrong is a coordinator's to say.

    Args:
        arguments: as `main` takes them.

    Returns:
        Whether it had to compile any of it.
    """
    admin_routes()
    try:
        config = load_config(_parse(arguments).config)
    except (ConfigError, OSError):
        return False

    def load() -> None:
        for task in config.tasks:
            preload_task(task)

    return compiles(load)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one coordinator; return the exit status."""
    arguments = _parse(argv)

    async def build(config: ServerConfig) -> RunningServer:
        store_url = _store_url(config, arguments.store_url)
        require_free_addresses(config, shared=True)
        return await build_server(config, store_url=store_url)

    return run_worker(
        arguments,
        load=load_config,
        log_level=lambda config: config.observability.log_level,
        build=build,
    )


def _store_url(config: ServerConfig, given: str) -> str:
    url = given or config.store.url
    if url == EMBEDDED:
        msg = "store.url: embedded is started by `fedagg serve`; a lone worker needs --store-url"
        raise ConfigError(msg)
    return url


def _parse(argv: Sequence[str] | None) -> CoordinatorArguments:
    parser = argument_parser("python -m server.worker", "Run one coordinator process.")
    parser.add_argument("--store-url", default="", help="round store; default: as configured")
    return CoordinatorArguments(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    end_process(main())
