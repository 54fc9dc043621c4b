"""Small statistics and sizes that the benchmarks share."""

import math
import statistics
from collections.abc import Sequence
from typing import Final

from updates.codec import ELEMENT_BYTES, HEADER_BYTES

KIB: Final = 1 << 10
MIB: Final = 1 << 20


def dim_of(payload_bytes: int) -> int:
    """Dimension of the update whose encoding has that many bytes."""
    return (payload_bytes - HEADER_BYTES) // ELEMENT_BYTES


def percentile_ms(latencies_s: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile, in milliseconds.

    Raises:
        ValueError: if there is nothing to rank.
    """
    if not latencies_s:
        msg = "no latency was measured"
        raise ValueError(msg)
    rank = max(1, math.ceil(percent / 100 * len(latencies_s)))
    return 1000 * sorted(latencies_s)[rank - 1]


def median(values: Sequence[float]) -> float:
    """Median, rounded to what the measurement can tell."""
    return float(f"{statistics.median(values):.4g}")


def size_name(payload_bytes: int) -> str:
    """`1 KiB`, `4 MiB`."""
    if payload_bytes >= MIB:
        return f"{payload_bytes // MIB} MiB"
    return f"{payload_bytes // KIB} KiB"
