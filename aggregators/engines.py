"""Where the values of dense updates are computed with: the one place that makes rows of vectors.

An engine is a resource: it is opened once a process and closed at its end. Which one it is decides
how fast rules are, never what they give.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from aggregators.dense_rows import as_rows
from aggregators.rows import Rows, Vector


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
