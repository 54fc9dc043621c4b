"""Tables of what the comparison found: one for each size, the libraries side by side."""

from collections.abc import Iterable, Sequence

from benchmarks.harness.tables import Table
from benchmarks.kernels.results import OURS, Comparison, LeftOut, Result, Size


def tables_of(found: Comparison) -> list[Table]:
    """Make a table for each size, one line per rule; below the last, what was left out."""
    tables = []
    for size in found.sizes:
        results = found.results_of(size)
        notes = [size_line(size), *(f"{note}." for note in _notes(results))]
        if size is found.sizes[-1]:
            reached = number(found.matrix_product_gflops)
            notes.append(f"float32 matrix products reach {reached} GFLOP/s here.")
            notes += [f"Left out: {left_out_line(one)}." for one in found.left_out]
        title = f"{size.n:,} x {size.d:,}"
        tables.append(Table(title=title, lines=list(_lines(found, size)), notes=notes))
    return tables


def size_line(size: Size) -> str:
    """Say how large the rows are and how long it takes to read them."""
    once = size.read_once
    return (
        f"n = {size.n:,} rows of d = {size.d:,} float32 values, {number(4e-6 * size.n * size.d)} "
        f"MB; read once in {number(once.ms)} ms, {number(once.gb_per_s)} GB/s ({once.reader})."
    )


def left_out_line(one: LeftOut) -> str:
    """Say what was left out, and why."""
    place = "" if one.rule is None else f" {one.rule} ({one.way}) at n={one.n} d={one.d}"
    return f"{one.peer}{place}: {one.reason}"


def number(value: float | None) -> str:
    """Write three digits, or nothing."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def megabytes(value: float | None) -> str:
    """Write megabytes, or nothing; less than a tenth is noise."""
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _notes(results: Sequence[Result]) -> Iterable[str]:
    """Say where definitions or answers differ."""
    for note in dict.fromkeys(one.note for one in results if one.note):
        places = [f"{one.rule} by {one.peer}" for one in results if one.note == note]
        yield f"{note}: {', '.join(places)}"
    for one in results:
        if one.differing_share > 0.0:
            share = f"{100 * one.differing_share:.2g} %"
            yield f"{one.rule} by {one.peer}: {share} of the values differ beyond rounding"


def _lines(found: Comparison, size: Size) -> Iterable[list[str]]:
    results = found.results_of(size)
    peers = list(dict.fromkeys(one.peer for one in results if one.peer != OURS))
    speedups = {
        one.rule: f"{number(one.speedup)} ({one.fastest_peer})"
        for one in found.speedups()
        if (one.n, one.d) == (size.n, size.d)
    }
    heading = ["rule", "fedagg ms", "GB/s", "x read once", "GFLOP/s", "extra MB"]
    yield [*heading, *(f"{peer} ms (extra MB)" for peer in peers), "against the fastest"]
    for ours in results:
        if ours.peer != OURS:
            continue
        own = [number(ours.ms), number(ours.gb_per_s), number(ours.read_once_multiple)]
        own += [number(ours.gflops), megabytes(ours.extra_mb)]
        others = [_peer_cell(results, ours.rule, peer) for peer in peers]
        yield [ours.rule, *own, *others, speedups.get(ours.rule, "")]


def _peer_cell(results: Iterable[Result], rule: str, peer: str) -> str:
    for one in results:
        if (one.rule, one.peer) == (rule, peer):
            extra = "" if one.extra_mb is None else f" ({megabytes(one.extra_mb)})"
            return number(one.ms) + extra
    return ""
