"""One share holder process: `python -m server.holder.process --config FILE`.

Serves until SIGTERM or SIGINT, answers what is under way and ends.

Exit status: 0 stopped when asked, 1 could not start, 2 wrong arguments, 3 wrong configuration. A
failed start is told on standard error, one line a problem.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop

from monitoring.logs import LogFormat, configure_logging
from server.config import ConfigError, HolderConfig, load_holder_config
from server.config.host import require_free_addresses
from server.errors import ServiceError
from server.holder.app import HolderServer, build_holder
from server.process_end import end_process

EXIT_FAILURE: Final = 1
EXIT_CONFIG: Final = 3

_STDOUT: Final = 1
_STDERR: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderArguments:
    """What the process is told on its command line.

    Attributes:
        config: path of the configuration file.
        log_format: how log lines look.
        log_file: file that takes the log, appended to; None: standard error.
        ready_fd: pipe that gets one byte when the process serves; None: nobody waits.
    """

    config: Path
    log_format: LogFormat = "auto"
    log_file: Path | None = None
    ready_fd: int | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one share holder; return the exit status."""
    # Nothing is under way yet: an interrupted start ends without a stack trace.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    arguments = _parse(argv)

    def ready(_: HolderServer) -> None:
        if arguments.ready_fd is not None:
            os.write(arguments.ready_fd, b"\n")

    try:
        if arguments.log_file is not None:
            _write_to(arguments.log_file)
        config = load_holder_config(arguments.config)
        configure_logging(
            level=config.log.level, log_format=arguments.log_format, stream=sys.stderr
        )
        uvloop.run(serve_until_stopped(config, on_ready=ready))
    except ConfigError as error:
        return _fail(EXIT_CONFIG, *error.problems)
    # RuntimeError: gRPC says so of an address it cannot listen on.
    except (ServiceError, OSError, RuntimeError) as error:
        return _fail(EXIT_FAILURE, str(error) or type(error).__name__)
    return 0


async def serve_until_stopped(
    config: HolderConfig, *, on_ready: Callable[[HolderServer], None]
) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError, ServiceError, OSError, RuntimeError: if the holder cannot start.
    """
    require_free_addresses(config, shared=False)
    server = build_holder(config)
    try:
        await server.start()
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        on_ready(server)
        await stopping.wait()
    finally:
        await server.stop()


def _parse(argv: Sequence[str] | None) -> HolderArguments:
    parser = argparse.ArgumentParser(
        prog="python -m server.holder.process",
        description="Run one share holder.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, required=True, help="configuration file (TOML)")
    parser.add_argument("--log-format", choices=("auto", "json", "text"), default="auto")
    parser.add_argument("--log-file", type=Path, help="append everything written to this file")
    parser.add_argument("--ready-fd", type=int, help="pipe that is told when the process serves")
    return HolderArguments(**vars(parser.parse_args(argv)))


def _write_to(path: Path) -> None:
    """Send both standard streams of the process to a file, native libraries included."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    os.dup2(file, _STDOUT)
    os.dup2(file, _STDERR)
    os.close(file)


def _fail(status: int, *problems: str) -> int:
    for problem in problems:
        sys.stderr.write(f"fedagg: {' '.join(problem.split())}\n")
    return status


if __name__ == "__main__":
    end_process(main())
