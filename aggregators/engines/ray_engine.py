"""The engine that shards rows over a Ray cluster, its own or one that runs already."""

import signal
import socket
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import psutil
import ray

from aggregators.engines.engine_options import EngineOptions
from aggregators.errors import AggregationError
from aggregators.kernels.threads import num_cores
from aggregators.rows.ray_rows import RayWorkers
from aggregators.rows.rows import Rows, Vector

START_TIMEOUT_S: Final = 300.0
"""For workers to start: a few seconds, on a busy machine minutes."""

CONNECT_TIMEOUT_S: Final = 10.0

_START_TRIES: Final = 3
_LOG_LEVEL: Final = 40  # of errors


class RayEngine:
    """Rows sharded by columns over workers that live as long as the engine.

    Open it in a thread that lives as long as it: the processes of a cluster of its own end with
    the thread that started them, and with this process however it ends (two of Ray's agents notice
    a kill within a minute or so). They listen on the loopback address alone, where nobody has
    loaded Ray before `make_engine` does.
    """

    def __init__(self, options: EngineOptions) -> None:
        """Start a cluster, or join one, and start the workers on it.

        Raises:
            AggregationError: if there is no cluster at the address, or the workers do not start.
        """
        self._is_open = True
        is_local = not options.ray_address
        threads = max(1, num_cores() // options.ray_workers) if is_local else None
        _connect(options)
        try:
            self._workers = RayWorkers(
                num_workers=options.ray_workers, num_threads=threads, timeout_s=START_TIMEOUT_S
            )
        except AggregationError:
            ray.shutdown()
            raise

    @property
    def name(self) -> str:
        """Name of the engine in settings."""
        return "ray"

    def rows(self, vectors: Sequence[Vector]) -> Rows:
        """Copy vectors to the workers; see `Engine`."""
        return self._workers.rows(vectors)

    def close(self) -> None:
        """Stop the workers, and the cluster if it is the engine's own."""
        if self._is_open:
            self._is_open = False
            self._workers.close()
            ray.shutdown()


def _connect(options: EngineOptions) -> None:
    if ray.is_initialized():
        message = "engine ray: this process has joined a Ray cluster already"
        raise AggregationError(message)
    handler = signal.getsignal(signal.SIGTERM)
    where = options.ray_address or "this machine"
    try:
        with warnings.catch_warnings():
            # Ray warns of settings of its own, and of sockets it leaves to the garbage collector.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", ResourceWarning)
            if options.ray_address:
                _join(options.ray_address)
            else:
                _start(options.ray_workers)
    except Exception as error:  # Ray raises nothing more special where a machine is too slow
        message = f"engine ray: no cluster at {where}: {' '.join(str(error).split())}"
        raise AggregationError(message) from error
    finally:
        # Ray ends the process by a handler of its own: how it ends is not for a library to say.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _join(address: str) -> None:
    host, _, port = address.rpartition(":")
    # Ray itself tries for minutes, and then ends the process.
    socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    ray.init(address=address, log_to_driver=False, logging_level=_LOG_LEVEL)


def _start(num_workers: int) -> None:
    before = _children()
    for tries_left in reversed(range(_START_TRIES)):
        try:
            ray.init(
                address="local",
                num_cpus=num_workers,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=_LOG_LEVEL,
            )
        except Exception:
            # Ray waits half a minute for its own processes; a busy machine may take longer.
            ray.shutdown()
            for child in _children() - before:  # Ray forgets those of a start that failed
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            if not tries_left:
                raise
        else:
            return


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))
