"""One share holder process: `python -m server.holder.process --config FILE`.

Serves until SIGTERM or SIGINT, answers what is under way and ends.

Exit status: 0 stopped when asked, 1 could not start, 2 wrong arguments, 3 wrong configuration. A
failed start is told on standard error, one line a problem.
"""

from collections.abc import Sequence

from security.secret_sharing.warm_up import warm_up
from server.config import HolderConfig, load_holder_config
from server.config.host import require_free_addresses
from server.holder.app import build_holder
from server.processes.compiling import compiles
from server.processes.process_end import end_process
from server.processes.worker_process import (
    RunningServer,
    WorkerArguments,
    argument_parser,
    run_worker,
)


def preload(arguments: Sequence[str]) -> bool:
    """Load, in a template, what every share holder needs; tell whether it had to be compiled."""
    del arguments
    return compiles(warm_up)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one share holder; return the exit status."""
    parser = argument_parser("python -m server.holder.process", "Run one share holder.")
    return run_worker(
        WorkerArguments(**vars(parser.parse_args(argv))),
        load=load_holder_config,
        log_level=lambda config: config.log.level,
        build=_build,
    )


async def _build(config: HolderConfig) -> RunningServer:
    require_free_addresses(config, shared=False)
    return build_holder(config)


if __name__ == "__main__":
    end_process(main())
