"""One coordinator process: `python -m server.worker --config FILE [--store-url URL]`.

Serves until SIGTERM or SIGINT, answers what is under way and ends. `fedagg serve` starts as many
as it is told to on the same addresses; see `server.supervisor`.

Exit status: 0 stopped when asked, 1 could not start, 2 wrong arguments, 3 wrong configuration. A
failed start is told on standard error, one line a problem.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop

from monitoring.logs import LogFormat, configure_logging
from server.app import build_server
from server.config import EMBEDDED, ConfigError, ServerConfig, load_config
from server.config.host import require_free_addresses
from server.errors import ServiceError
from server.process_end import end_process

EXIT_FAILURE: Final = 1
EXIT_CONFIG: Final = 3

_STDOUT: Final = 1
_STDERR: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerArguments:
    """What the process is told on its command line.

    Attributes:
        config: path of the configuration file.
        store_url: where the round store answers; empty: as configured.
        log_format: how log lines look.
        log_file: file that takes the log, appended to; None: standard error.
        ready_fd: pipe that gets one byte when the process serves; None: nobody waits.
    """

    config: Path
    store_url: str = ""
    log_format: LogFormat = "auto"
    log_file: Path | None = None
    ready_fd: int | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one coordinator; return the exit status."""
    # Nothing is under way yet: an interrupted start ends without a stack trace.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    arguments = _parse(argv)
    try:
        if arguments.log_file is not None:
            _write_to(arguments.log_file)
        config = load_config(arguments.config)
        configure_logging(
            level=config.observability.log_level, log_format=arguments.log_format, stream=sys.stderr
        )
        uvloop.run(_serve(config, arguments))
    except ConfigError as error:
        return _fail(EXIT_CONFIG, *error.problems)
    # RuntimeError: gRPC says so of an address it cannot listen on.
    except (ServiceError, OSError, RuntimeError) as error:
        return _fail(EXIT_FAILURE, str(error) or type(error).__name__)
    return 0


async def _serve(config: ServerConfig, arguments: WorkerArguments) -> None:
    store_url = _store_url(config, arguments.store_url)
    require_free_addresses(config, shared=True)
    server = await build_server(config, store_url=store_url)
    await server.start()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    if arguments.ready_fd is not None:
        os.write(arguments.ready_fd, b"\n")
    await stopping.wait()
    await server.stop()


def _store_url(config: ServerConfig, given: str) -> str:
    url = given or config.store.url
    if url == EMBEDDED:
        msg = "store.url: embedded is started by `fedagg serve`; a lone worker needs --store-url"
        raise ConfigError(msg)
    return url


def _parse(argv: Sequence[str] | None) -> WorkerArguments:
    parser = argparse.ArgumentParser(
        prog="python -m server.worker",
        description="Run one coordinator process.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, required=True, help="configuration file (TOML)")
    parser.add_argument("--store-url", default="", help="round store; default: as configured")
    parser.add_argument("--log-format", choices=("auto", "json", "text"), default="auto")
    parser.add_argument("--log-file", type=Path, help="append everything written to this file")
    parser.add_argument("--ready-fd", type=int, help="pipe that is told when the process serves")
    return WorkerArguments(**vars(parser.parse_args(argv)))


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
