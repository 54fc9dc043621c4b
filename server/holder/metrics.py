"""Metrics of a share holder, beside those of its RPCs. No label names a device or a round."""

from dataclasses import dataclass
from typing import Final, Self

from prometheus_client import CollectorRegistry, Counter, Histogram

from monitoring.metrics import PREFIX

_PREFIX: Final = PREFIX + "holder_"
_OPENING_BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300)


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderMetrics:
    """Counters of what a holder takes in and gives out."""

    shares_stored_total: Counter
    shares_refused_total: Counter
    share_bytes_total: Counter
    noise_dealt_total: Counter
    statements_total: Counter
    openings_seconds: Histogram
    sums_seconds: Histogram

    @classmethod
    def declare(cls, registry: CollectorRegistry) -> Self:
        """Register every metric; once a registry."""
        return cls(
            shares_stored_total=Counter(
                _PREFIX + "shares_stored_total",
                "Shares of devices that this holder gave a receipt for, repeats included.",
                registry=registry,
            ),
            shares_refused_total=Counter(
                _PREFIX + "shares_refused_total",
                "Shares of devices that this holder refused, by reason.",
                ("reason",),
                registry=registry,
            ),
            share_bytes_total=Counter(
                _PREFIX + "share_bytes_total",
                "Bytes of bodies that were received, sealed.",
                registry=registry,
            ),
            noise_dealt_total=Counter(
                _PREFIX + "noise_dealt_total",
                "Sealed noise of rounds that this holder gave out, repeats included.",
                registry=registry,
            ),
            statements_total=Counter(
                _PREFIX + "statements_total",
                "Signed statements that were given out, repeats included, by kind.",
                ("kind",),
                registry=registry,
            ),
            openings_seconds=Histogram(
                _PREFIX + "openings_seconds",
                "Time to open the checks of a frozen set, or to find them stored.",
                buckets=_OPENING_BUCKETS,
                registry=registry,
            ),
            sums_seconds=Histogram(
                _PREFIX + "sums_seconds",
                "Time to compute a share of a round's sums, or to find it stored.",
                buckets=_OPENING_BUCKETS,
                registry=registry,
            ),
        )
