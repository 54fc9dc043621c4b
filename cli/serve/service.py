"""The processes of one installation on this host: the embedded store and the coordinators."""

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from monitoring.logs import LogFormat
from monitoring.metrics import forget_process
from server.config import EMBEDDED, ServerConfig
from server.processes.child_process import ProcessSpec, module_command
from server.processes.supervisor import ProcessEvent, ProcessEventKind, worker_environment
from server.processes.template import Template
from server.storage.embedded import EmbeddedStore

COORDINATOR: Final = "coordinator-"

_METRICS_ENV: Final = "PROMETHEUS_MULTIPROC_DIR"
COORDINATOR_PROGRAM: Final = "server.worker"
HOLDER_PROGRAM: Final = "server.holder.process"
# After the template and the store.
_HOLDER_STAGE: Final = 1
_COORDINATOR_STAGE: Final = 2


class Service:
    """What a `Supervisor` runs: an embedded store where one is configured, then the workers.

    A context: it holds the store's data folder, the workers' common metrics folder and their
    readiness pipes, and gives them back at the end, after the supervisor has stopped everything.
    Not for several threads: it sets an environment variable while it is entered.

    Args:
        config_path: what the workers read.
        config: the same, already read.
        workers: coordinator processes, from 1; they listen on the same addresses.
        template: forks them; it is not among `specs`. See `server_template`.
        log_dir: folder for one log file per worker; None: the caller's standard error.
        metrics_dir: where the workers' common metrics go; None: a temporary folder.
        log_format: how the workers' log lines look.
    """

    def __init__(
        self,
        config_path: Path,
        config: ServerConfig,
        *,
        workers: int,
        template: Template,
        log_dir: Path | None = None,
        metrics_dir: Path | None = None,
        log_format: LogFormat = "auto",
    ) -> None:
        self._config_path = config_path
        self._config = config
        self._template = template
        self._log_dir = log_dir
        self._metrics_dir = metrics_dir
        self._log_format: LogFormat = log_format
        self._names = [f"{COORDINATOR}{number}" for number in range(1, workers + 1)]
        self._store: EmbeddedStore | None = None
        if config.store.url == EMBEDDED:
            self._store = EmbeddedStore(
                config.store.data_dir / "store", durability=config.store.durability
            )
        self._stack = contextlib.ExitStack()
        self._specs: list[ProcessSpec] = []
        self._pids: dict[str, int] = {}

    def __enter__(self) -> Self:
        """Take what the processes need.

        Raises:
            EmbeddedStoreError: if the data folder is in use or no server binary is installed.
        """
        with contextlib.ExitStack() as stack:
            if self._store is not None:
                stack.callback(self._store.close)
                spec = self._store.process_spec()
                if self._log_dir is not None:
                    # Where it has no log yet, or cannot write it, it tells standard output.
                    spec = replace(spec, log_path=self._store.log_path)
                self._specs.append(spec)
            if len(self._names) > 1:
                stack.enter_context(_common_metrics(self._metrics_dir))
            for name in self._names:
                pipe = ReadyPipe()
                stack.callback(pipe.close)
                self._specs.append(self._worker(name, pipe))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()
        self._specs.clear()

    @property
    def specs(self) -> tuple[ProcessSpec, ...]:
        """The processes, for the supervisor."""
        return tuple(self._specs)

    @property
    def store_url(self) -> str:
        """Where the round store answers."""
        return self._store.url if self._store is not None else self._config.store.url

    @property
    def socket_dir(self) -> Path | None:
        """Folder of the embedded store's socket; None: there is no such store."""
        return self._store.socket_dir if self._store is not None else None

    @property
    def pids(self) -> Mapping[str, int]:
        """Process ids by name, of the processes that run now."""
        return self._pids

    def log_path(self, name: str) -> Path | None:
        """Log file of a worker; None where it goes to standard error."""
        return self._log_dir / f"{name}.log" if self._log_dir is not None else None

    def observe(self, event: ProcessEvent) -> None:
        """Keep `pids`, and the metrics of dead workers, up to date; call it for every event."""
        if event.kind is ProcessEventKind.STARTED:
            self._pids[event.name] = event.pid
        elif event.kind is ProcessEventKind.EXITED:
            self._pids.pop(event.name, None)
            forget_process(event.pid)

    def _worker(self, name: str, pipe: "ReadyPipe") -> ProcessSpec:
        arguments = ["--config", str(self._config_path), "--store-url", self.store_url]
        arguments += ["--log-format", self._log_format, "--ready-fd", str(pipe.write_fd)]
        return ProcessSpec(
            name=name,
            command=module_command(COORDINATOR_PROGRAM, *arguments),
            forker=self._template.forker,
            environment=server_environment(),
            pass_fds=(pipe.write_fd,),
            stage=_COORDINATOR_STAGE,
            ready=pipe.ready,
            log_path=self.log_path(name),
        )


def server_template(
    programs: Mapping[str, Sequence[str]], *, log_path: Path | None = None
) -> Template:
    """Return the process that servers are forked from; see `Template`.

    Args:
        programs: what it loads, each with arguments as one of its processes has them.
        log_path: as in `ProcessSpec`.
    """
    return Template(programs, environment=server_environment(), log_path=log_path)


def server_environment() -> dict[str, str]:
    """Return what servers need set before they start; they import from where this process does."""
    path = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    return {**worker_environment(), "PYTHONPATH": path}


def holder_spec(
    name: str,
    config_path: Path,
    pipe: "ReadyPipe",
    *,
    template: Template,
    log_format: LogFormat = "auto",
    log_path: Path | None = None,
) -> ProcessSpec:
    """Return how a supervisor runs a share holder.

    Args:
        name: of the process, for people.
        config_path: what it reads.
        pipe: on which it tells that it serves.
        template: forks it.
        log_format: how its log lines look.
        log_path: file that takes its log; None: the caller's standard error.
    """
    arguments = ["--config", str(config_path), "--log-format", log_format]
    return ProcessSpec(
        name=name,
        command=module_command(HOLDER_PROGRAM, *arguments, "--ready-fd", str(pipe.write_fd)),
        forker=template.forker,
        environment=server_environment(),
        pass_fds=(pipe.write_fd,),
        stage=_HOLDER_STAGE,
        ready=pipe.ready,
        log_path=log_path,
    )


class ReadyPipe:
    """A pipe on which a process writes one byte when it serves; restarts use the same one."""

    def __init__(self) -> None:
        self._read_fd, self.write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)

    async def ready(self) -> None:
        """Return when the byte is there."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._read_fd, readable.set)
        try:
            await readable.wait()
            os.read(self._read_fd, 1)
        finally:
            loop.remove_reader(self._read_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close both ends."""
        os.close(self._read_fd)
        os.close(self.write_fd)


@contextlib.contextmanager
def _common_metrics(given: Path | None) -> Iterator[None]:
    """Let every worker answer scrapes for all of them; see `monitoring.metrics`."""
    before = os.environ.get(_METRICS_ENV)
    with contextlib.ExitStack() as stack:
        if given is not None:
            given.mkdir()
        os.environ[_METRICS_ENV] = (
            str(given)
            if given is not None
            else stack.enter_context(tempfile.TemporaryDirectory(prefix="fedagg-metrics-"))
        )
        try:
            yield
        finally:
            if before is None:
                del os.environ[_METRICS_ENV]
            else:
                os.environ[_METRICS_ENV] = before
