"""What a coordinator and a share holder do alike as a process: arguments, log, readiness, end."""

import argparse
import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

import uvloop

from monitoring.logs import LogFormat, configure_logging
from server.config import ConfigError
from server.errors import ServiceError

EXIT_FAILURE: Final = 1
EXIT_CONFIG: Final = 3

_STDOUT: Final = 1
_STDERR: Final = 2

ConfigT = TypeVar("ConfigT")


class RunningServer(Protocol):
    """What a worker process serves with; `start` once, `stop` once, also where `start` failed."""

    async def start(self) -> None:
        """Serve from here on."""

    async def stop(self) -> None:
        """Answer what is under way, then close everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerArguments:
    """What every worker process is told on its command line.

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


def argument_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser of `WorkerArguments`."""
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--config", type=Path, required=True, help="configuration file (TOML)")
    parser.add_argument("--log-format", choices=("auto", "json", "text"), default="auto")
    parser.add_argument("--log-file", type=Path, help="append everything written to this file")
    parser.add_argument("--ready-fd", type=int, help="pipe that is told when the process serves")
    return parser


def run_worker(
    arguments: WorkerArguments,
    *,
    load: Callable[[Path], ConfigT],
    log_level: Callable[[ConfigT], str],
    build: Callable[[ConfigT], Awaitable[RunningServer]],
) -> int:
    """Serve until SIGTERM or SIGINT; a failed start is told on standard error, a line a problem.

    Args:
        arguments: of the command line.
        load: reads the configuration file.
        log_level: the one that is configured.
        build: makes the server, on the loop that will serve.

    Returns:
        The exit status: 0 stopped when asked, 1 could not start, 3 wrong configuration.
    """
    # Nothing is under way yet: an interrupted start ends without a stack trace.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        if arguments.log_file is not None:
            _write_to(arguments.log_file)
        config = load(arguments.config)
        configure_logging(
            level=log_level(config), log_format=arguments.log_format, stream=sys.stderr
        )
        uvloop.run(_serve(build(config), arguments.ready_fd))
    except ConfigError as error:
        return _fail(EXIT_CONFIG, *error.problems)
    # RuntimeError: gRPC says so of an address it cannot listen on.
    except (ServiceError, OSError, RuntimeError) as error:
        return _fail(EXIT_FAILURE, str(error) or type(error).__name__)
    return 0


async def _serve(building: Awaitable[RunningServer], ready_fd: int | None) -> None:
    server = await building
    try:
        await server.start()
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        _give_back_memory()
        if ready_fd is not None:
            os.write(ready_fd, b"\n")
        await stopping.wait()
    finally:
        await server.stop()


def _give_back_memory() -> None:
    """Return what starting took and nobody needs now, such as models that were read and checked.

    It would stay: in this process freed memory is kept for what comes next.
    """
    gc.collect()
    with contextlib.suppress(AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


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
