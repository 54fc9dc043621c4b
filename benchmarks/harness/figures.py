"""Figures, small statistics of them, and what they must not exceed."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from updates.codec import ELEMENT_BYTES, HEADER_BYTES

Figures: TypeAlias = dict[str, object]
"""One row of a table, by column."""

KIB: Final = 1 << 10
MIB: Final = 1 << 20
NO_TARGET: Final = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a figure must not exceed.

    Attributes:
        name: of the figure.
        figure: as measured, in the unit of `limit`.
        limit: the largest that is accepted.
        unit: of both; empty: a plain number.
    """

    name: str
    figure: float
    limit: float
    unit: str = ""

    @property
    def is_met(self) -> bool:
        """Tell whether the figure is small enough."""
        return self.figure <= self.limit

    def __str__(self) -> str:
        return f"{self.name} <= {self.limit:g} {self.unit}".rstrip()


def judged(*targets: Target) -> Figures:
    """Make the columns that end a row: its targets, and which are met."""
    if not targets:
        return {"target": NO_TARGET, "met": NO_TARGET}
    missed = [target.name for target in targets if not target.is_met]
    return {
        "target": "; ".join(map(str, targets)),
        "met": f"no: {', '.join(missed)}" if missed else "yes",
    }


def rounded(value: float) -> float:
    """Keep four digits: more cannot be told from a measurement."""
    return float(f"{value:.4g}")


def median(values: Sequence[float]) -> float:
    """Take the median, `rounded`."""
    return rounded(statistics.median(values))


def percentile_ms(latencies_s: Sequence[float], percent: float) -> float:
    """Take a nearest-rank percentile, in milliseconds.

    Raises:
        ValueError: if there is nothing to rank.
    """
    if not latencies_s:
        msg = "no latency was measured"
        raise ValueError(msg)
    rank = max(1, math.ceil(percent / 100 * len(latencies_s)))
    return rounded(1000 * sorted(latencies_s)[rank - 1])


def megabytes(num_bytes: float) -> float:
    """Give bytes in units of 10^6, `rounded`."""
    return rounded(num_bytes / 1e6)


def dim_of(payload_bytes: int) -> int:
    """Compute the dimension of the update whose encoding has that many bytes."""
    return (payload_bytes - HEADER_BYTES) // ELEMENT_BYTES


def size_name(payload_bytes: int) -> str:
    """Name a size as people do: `1 KiB`, `4 MiB`."""
    if payload_bytes >= MIB:
        return f"{payload_bytes // MIB} MiB"
    return f"{payload_bytes // KIB} KiB"
