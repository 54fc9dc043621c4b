"""What a run of the benchmark found."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.harness.machine import Machine
from benchmarks.kernels.machine import ReadOnce

OURS: Final = "fedagg"
DIFFERS: Final = 1e-4
"""Beyond rounding in float32, in root mean squares of the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One library computing one rule.

    Attributes:
        n: rows.
        d: columns.
        rule: the rule.
        peer: the library; `fedagg` is this one.
        ms: median time of a call.
        min_ms: the shortest.
        runs: calls timed.
        gb_per_s: bytes of the rows in that time, 1e9 bytes a second.
        read_once_multiple: the time, in times that it takes to read the rows once.
        gflops: n (n + 1) d operations in that time, 1e9 a second; None where inner products are
            not nearly all of the work.
        extra_mb: peak memory beside input and output, 1e6 bytes; None where the system does not
            tell.
        times_fedagg: the time, in times of this library's.
        max_diff: largest difference from this library's result, in root mean squares of the
            rows; None if it is not finite.
        differing_share: part of the values that differ beyond rounding; 0 to 1.
        way: what was called, the fastest of those tried.
        note: where the definition differs from this library's.
    """

    n: int
    d: int
    rule: str
    peer: str
    ms: float
    min_ms: float
    runs: int
    gb_per_s: float
    read_once_multiple: float
    gflops: float | None
    extra_mb: float | None
    times_fedagg: float
    max_diff: float | None
    differing_share: float
    way: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """What was not measured: a way to compute a rule or, with empty fields, a whole library."""

    peer: str
    reason: str
    n: int | None = None
    d: int | None = None
    rule: str | None = None
    way: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    """This library against the fastest of the others: above 1, it is faster."""

    n: int
    d: int
    rule: str
    fastest_peer: str
    speedup: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Rows of one size, and how long it takes to read them once."""

    n: int
    d: int
    read_once: ReadOnce

    def as_json(self) -> dict[str, object]:
        """Flatten."""
        once = self.read_once
        return {
            "n": self.n,
            "d": self.d,
            "read_once_ms": once.ms,
            "read_once_gb_per_s": once.gb_per_s,
            "reader": once.reader,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All of one run.

    Attributes:
        machine: what it ran on.
        settings: what was asked for.
        matrix_product_gflops: what the machine reaches in float32 matrix products.
        sizes: at least one.
    """

    machine: Machine
    settings: Mapping[str, object]
    matrix_product_gflops: float
    sizes: Sequence[Size]
    results: Sequence[Result]
    left_out: Sequence[LeftOut]

    def results_of(self, size: Size) -> list[Result]:
        """Pick the results for one size."""
        return [one for one in self.results if (one.n, one.d) == (size.n, size.d)]

    def speedups(self) -> list[Speedup]:
        """Compare with the fastest other library, wherever there is one."""
        fastest: dict[tuple[int, int, str], Result] = {}
        for one in self.results:
            key = (one.n, one.d, one.rule)
            if one.peer != OURS and (key not in fastest or one.ms < fastest[key].ms):
                fastest[key] = one
        return [
            Speedup(n=n, d=d, rule=rule, fastest_peer=one.peer, speedup=one.times_fedagg)
            for (n, d, rule), one in fastest.items()
        ]

    def as_json(self) -> dict[str, object]:
        """Make one JSON object. Its bandwidth is that of the first size; `sizes` has all."""
        first = self.sizes[0].read_once
        return {
            "machine": dataclasses.asdict(self.machine),
            "settings": self.settings,
            "read_once_ms": first.ms,
            "gb_per_s": first.gb_per_s,
            "matrix_product_gflops": self.matrix_product_gflops,
            "sizes": [size.as_json() for size in self.sizes],
            "results": [dataclasses.asdict(one) for one in self.results],
            "speedups": [dataclasses.asdict(one) for one in self.speedups()],
            "left_out": [dataclasses.asdict(one) for one in self.left_out],
        }
