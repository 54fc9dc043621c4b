"""Times the libraries turn by turn, so that what else the machine does hits all of them alike."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import psutil

from benchmarks.kernels.machine import measure_read_once, seconds_of
from benchmarks.kernels.memory import run_measured
from benchmarks.kernels.results import DIFFERS, OURS, LeftOut, Result, Size
from benchmarks.kernels.rules import RULES, make_rows
from benchmarks.kernels.ways import Answer, Call, Matrix, Way, Ways

Say = Callable[[str], None]

_PROBE_ROWS: Final = 24
_PROBE_COLUMNS: Final = 1 << 14
_PROBES: Final = 2
_LONG_PROBE_S: Final = 0.5
_CLOSE: Final = 1.5  # ways of one library whose first calls differ by less are all repeated
_MEMORY_SHARE: Final = 0.8  # of the memory that is available


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long is measured.

    Attributes:
        repeats: calls timed of each way, at most.
        budget_s: no further call of a way that has taken so many seconds; one is always timed.
        limit_s: no call at all that would take longer, as far as a small one can tell.
    """

    repeats: int
    budget_s: float
    limit_s: float


@dataclass(slots=True, kw_only=True)
class Contender:
    """A way that is being timed."""

    peer: str
    way: Way
    call: Call
    first_s: float
    extra_bytes: int | None
    max_diff: float | None = None
    differing_share: float = 0.0
    seconds: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        """Median of the times."""
        return statistics.median(self.seconds)


class WaySkipped(Exception):
    """A way cannot be measured here; the text says why."""


def measure_size(
    shape: tuple[int, int],
    rules: Sequence[str],
    peers: Mapping[str, Ways],
    effort: Effort,
    *,
    seed: int,
    say: Say,
) -> tuple[Size, list[Result], list[LeftOut]]:
    """Measure rules on rows of one shape, (n, d)."""
    num_rows, dim = shape
    say(f"n={num_rows} d={dim}: drawing rows and reading them")
    matrix = make_rows(num_rows, dim, seed)
    read_once = measure_read_once(matrix)
    found: dict[str, list[Contender]] = {}
    left_out: list[LeftOut] = []
    for rule in rules:
        ways = [(OURS, RULES[rule].way())]
        ways += [(peer, way) for peer, known in peers.items() for way in known.get(rule, ())]
        contenders, skipped = measure_rule(rule, matrix, ways, effort, say)
        found[rule] = fastest_ways(contenders)
        left_out += skipped
        read_once = measure_read_once(matrix, read_once)
    size = Size(n=num_rows, d=dim, read_once=read_once)
    results = [one for rule, best in found.items() for one in _results(rule, size, best)]
    return size, results, left_out


def measure_rule(
    rule: str, matrix: Matrix, ways: Iterable[tuple[str, Way]], effort: Effort, say: Say
) -> tuple[list[Contender], list[LeftOut]]:
    """Time a rule in several ways; the first of them is what the others are compared with."""
    num_rows, dim = matrix.shape
    contenders: list[Contender] = []
    left_out: list[LeftOut] = []
    reference: Answer | None = None
    for peer, way in ways:
        say(f"n={num_rows} d={dim}: {rule} by {peer} ({way.name})")
        try:
            contender, answer = _first_call(rule, peer, way, matrix, effort)
        except WaySkipped as skipped:
            left_out.append(
                LeftOut(n=num_rows, d=dim, rule=rule, peer=peer, way=way.name, reason=str(skipped))
            )
            continue
        reference = answer if reference is None else reference
        _compare(contender, answer, reference, matrix)
        contenders.append(contender)
    promising = _promising(contenders)
    say(f"n={num_rows} d={dim}: {rule}, turn by turn")
    _repeat(promising, effort)
    return promising, left_out


def fastest_ways(contenders: Iterable[Contender]) -> list[Contender]:
    """Keep the fastest way of each library."""
    best: dict[str, Contender] = {}
    for one in contenders:
        if one.peer not in best or one.median_s < best[one.peer].median_s:
            best[one.peer] = one
    return list(best.values())


def _first_call(
    rule: str, peer: str, way: Way, matrix: Matrix, effort: Effort
) -> tuple[Contender, Answer]:
    """Estimate on few rows, then call once, watching the memory."""
    available = _MEMORY_SHARE * psutil.virtual_memory().available
    if way.memory_bytes(matrix) > available:
        message = f"needs up to {way.memory_bytes(matrix) / 1e9:.0f} GB"
        raise WaySkipped(message)
    num_byzantine = RULES[rule].num_byzantine
    try:
        estimate = _estimate_s(way, matrix, num_byzantine, effort.limit_s)
        if peer != OURS and estimate > effort.limit_s:
            message = f"one call takes about {estimate:,.0f} s"
            raise WaySkipped(message)
        call = way.bind(matrix, num_byzantine(len(matrix)))
        answer, first_s, extra_bytes = run_measured(call)
    except (ArithmeticError, AttributeError, MemoryError, RuntimeError, TypeError, ValueError) as e:
        if peer == OURS:
            raise
        message = f"failed: {type(e).__name__}: {e}"
        raise WaySkipped(message) from e
    contender = Contender(peer=peer, way=way, call=call, first_s=first_s, extra_bytes=extra_bytes)
    return contender, answer


def _estimate_s(
    way: Way, matrix: Matrix, num_byzantine: Callable[[int], int], limit_s: float
) -> float:
    """Extrapolate the time of a call from calls on a corner of the rows; also warms up.

    What a call costs beside the work counts too much on few rows, so the corner grows while the
    estimate is above the limit and calls are short.
    """
    num_rows, dim = matrix.shape
    rows, columns = min(num_rows, _PROBE_ROWS), min(dim, _PROBE_COLUMNS)
    while True:
        corner = np.ascontiguousarray(matrix[:rows, :columns])
        call = way.bind(corner, num_byzantine(rows))
        call()  # compiles, imports, starts threads
        shortest = min(seconds_of(call) for _ in range(_PROBES))
        growth: float = (num_rows / rows) ** float(way.rows_power) * dim / columns
        is_whole = (rows, columns) == matrix.shape
        if shortest * growth <= limit_s or shortest > _LONG_PROBE_S or is_whole:
            return shortest * growth
        rows, columns = min(num_rows, 2 * rows), min(dim, 2 * columns)


def _promising(contenders: Sequence[Contender]) -> list[Contender]:
    """Drop ways that are far slower than another of the same library."""
    least: dict[str, float] = {}
    for one in contenders:
        least[one.peer] = min(one.first_s, least.get(one.peer, math.inf))
    return [one for one in contenders if one.first_s <= _CLOSE * least[one.peer]]


def _repeat(contenders: Sequence[Contender], effort: Effort) -> None:
    for one in contenders:
        if one.first_s > effort.budget_s / 2:
            one.seconds.append(one.first_s)
    for _ in range(effort.repeats):
        for one in contenders:
            spent, last = sum(one.seconds), one.seconds[-1] if one.seconds else 0.0
            if spent + last <= effort.budget_s:
                one.seconds.append(seconds_of(one.call))


def _compare(contender: Contender, answer: Answer, reference: Answer, matrix: Matrix) -> None:
    """Note how far an answer is from the reference, in root mean squares of the rows."""
    unit = float(np.sqrt(np.mean(np.square(matrix[:, :_PROBE_COLUMNS]))))
    differences = np.abs(answer - reference)
    largest = float(np.max(differences)) / unit
    contender.max_diff = largest if math.isfinite(largest) else None
    # Counted by what is near: NaN is not.
    contender.differing_share = 1.0 - float(np.mean(differences <= DIFFERS * unit))


def _results(rule: str, size: Size, contenders: Sequence[Contender]) -> list[Result]:
    num_bytes = 4 * size.n * size.d
    operations = size.n * (size.n + 1) * size.d
    ours_s = contenders[0].median_s
    return [
        Result(
            n=size.n,
            d=size.d,
            rule=rule,
            peer=one.peer,
            ms=1e3 * one.median_s,
            min_ms=1e3 * min(one.seconds),
            runs=len(one.seconds),
            gb_per_s=num_bytes / one.median_s / 1e9,
            read_once_multiple=1e3 * one.median_s / size.read_once.ms,
            gflops=operations / one.median_s / 1e9 if RULES[rule].is_distances else None,
            extra_mb=None if one.extra_bytes is None else one.extra_bytes / 1e6,
            times_fedagg=one.median_s / ours_s,
            max_diff=one.max_diff,
            differing_share=one.differing_share,
            way=one.way.name,
            note=one.way.note,
        )
        for one in contenders
    ]
