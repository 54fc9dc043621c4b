"""Where the values of dense updates are computed with: the one place that makes rows of vectors.

An engine is a resource: it is opened once a process and closed at its end. Which one it is decides
how fast rules are, never what they give. Libraries of extras are loaded when an engine is opened.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Final, Protocol

from aggregators.engines.engine_options import EngineOptions, engine_problem
from aggregators.errors import AggregationError
from aggregators.rows.dense_rows import as_rows
from aggregators.rows.rows import Rows, Vector


class Engine(Protocol):
    """Makes rows of a round's dense updates. Safe to share between threads."""

    @property
    def name(self) -> str:
        """As `make_engine` takes it."""
        ...

    def rows(self, vectors: Sequence[Vector]) -> Rows:
        """Wrap vectors, which are not modified meanwhile.

        Args:
            vectors: n vectors of d float32 values.

        Raises:
            AggregationError: if there are none, or they are not float32 vectors of one length.

        Guarantees:
            What any rule makes of the rows has the bits that it makes of those of `LOCAL`.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds; its rows are of no use after. May be called twice."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalEngine:
    """Rows in this process, read by compiled kernels.

    Attributes:
        num_threads: that read a round's updates; None: one a core. Never changes a result.
    """

    num_threads: int | None = None

    @property
    def name(self) -> str:
        """Name of the engine in settings."""
        return "local"

    def rows(self, vectors: Sequence[Vector]) -> Rows:
        """Wrap vectors without copying those that are contiguous; see `Engine`."""
        return as_rows(vectors, num_threads=self.num_threads)

    def close(self) -> None:
        """Do nothing: nothing is held."""


LOCAL: Final = LocalEngine()
"""The engine of whoever names none: kernels of this process, one thread a core."""


def make_engine(name: str, options: EngineOptions | None = None) -> Engine:
    """Open an engine. Who opened it closes it.

    Args:
        name: of `ENGINES`.
        options: what it runs on; None: as it finds things.

    Raises:
        AggregationError: if there is no such engine, its extra is not installed, or the device or
            cluster is missing.
    """
    problem = engine_problem(name)
    if problem is not None:
        raise AggregationError(problem)
    return ENGINES[name](options or EngineOptions())


def _open_local(options: EngineOptions) -> Engine:
    return LocalEngine(num_threads=options.num_threads)


def _open_torch(options: EngineOptions) -> Engine:
    engine: Engine = import_module("aggregators.engines.torch_engine").TorchEngine(options)
    return engine


def _open_ray(options: EngineOptions) -> Engine:
    if not options.ray_address:
        # Read when Ray is loaded: a cluster of our own then listens on the loopback address alone.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    engine: Engine = import_module("aggregators.engines.ray_engine").RayEngine(options)
    return engine


ENGINES: Final[dict[str, Callable[[EngineOptions], Engine]]] = {
    "local": _open_local,
    "torch": _open_torch,
    "ray": _open_ray,
}
