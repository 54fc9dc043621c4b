"""Tables of what the benchmark found: for a terminal, and for the documentation."""

from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.kernels.results import OURS, LeftOut, Report, Result, Size

_COLUMNS: Final = ("rule", "by", "ms", "GB/s", "x read", "extra MB", "x fedagg", "max diff")


def write_tables(report: Report, console: Console) -> None:
    """Write a table for each size, one line per rule and library."""
    lines = [machine_line(report)]
    for size in report.sizes:
        results = report.results_of(size)
        lines += ["", size_line(size)]
        _write(console, lines)
        table = Table(*_COLUMNS, box=None, pad_edge=False, header_style="bold")
        for one in results:
            table.add_row(*map(escape, _cells(one)))
        console.print(table)
        lines = [*_rates(results), *_notes(results)]
    if report.left_out:
        lines += ["", *(f"left out: {left_out_line(one)}" for one in report.left_out)]
    _write(console, lines)


def _write(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(escape(line))


def markdown(report: Report) -> str:
    """Make a table for each size, one line per rule, the libraries side by side."""
    parts = [machine_line(report) + "\n"]
    for size in report.sizes:
        parts.append(f"\n### {size.n:,} x {size.d:,}\n\n{size_line(size)}\n\n")
        parts.extend(_markdown_table(report, size))
        parts.extend(f"\n{note}.\n" for note in _notes(report.results_of(size)))
    if report.left_out:
        parts.append("\nLeft out:\n\n")
        parts.extend(f"- {left_out_line(one)}\n" for one in report.left_out)
    return "".join(parts)


def machine_line(report: Report) -> str:
    """Say what the figures were measured on."""
    machine = report.machine
    packages = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return (
        f"{machine.processor}, {machine.cores} cores, {machine.memory_gb} GB, "
        f"{machine.system}, Python {machine.python}, {packages}; "
        f"float32 matrix products reach {number(report.matrix_product_gflops)} GFLOP/s."
    )


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


def _cells(one: Result) -> list[str]:
    diff = "not finite" if one.max_diff is None else f"{one.max_diff:.0e}"
    return [
        one.rule if one.peer == OURS else "",
        one.peer,
        *map(number, (one.ms, one.gb_per_s, one.read_once_multiple)),
        megabytes(one.extra_mb),
        number(one.times_fedagg),
        diff,
    ]


def _rates(results: Sequence[Result]) -> Iterable[str]:
    for rule in dict.fromkeys(one.rule for one in results if one.gflops is not None):
        rates = [f"{one.peer} {number(one.gflops)}" for one in results if one.rule == rule]
        yield f"{rule}, GFLOP/s: {', '.join(rates)}"


def _notes(results: Sequence[Result]) -> Iterable[str]:
    """Say where definitions or answers differ."""
    for note in dict.fromkeys(one.note for one in results if one.note):
        places = [f"{one.rule} by {one.peer}" for one in results if one.note == note]
        yield f"{note}: {', '.join(places)}"
    for one in results:
        if one.differing_share > 0.0:
            share = f"{100 * one.differing_share:.2g} %"
            yield f"{one.rule} by {one.peer}: {share} of the values differ beyond rounding"


def _markdown_table(report: Report, size: Size) -> Iterable[str]:
    results = report.results_of(size)
    peers = list(dict.fromkeys(one.peer for one in results if one.peer != OURS))
    speedups = {
        one.rule: f"{number(one.speedup)} ({one.fastest_peer})"
        for one in report.speedups()
        if (one.n, one.d) == (size.n, size.d)
    }
    heading = ["rule", "fedagg ms", "GB/s", "x read once", "GFLOP/s", "extra MB"]
    heading += [f"{peer} ms (extra MB)" for peer in peers]
    heading.append("against the fastest")
    yield _line(heading)
    yield _line(["---", *["---:"] * (len(heading) - 1)])
    for ours in results:
        if ours.peer != OURS:
            continue
        own = [number(ours.ms), number(ours.gb_per_s), number(ours.read_once_multiple)]
        own += [number(ours.gflops), megabytes(ours.extra_mb)]
        others = [_peer_cell(results, ours.rule, peer) for peer in peers]
        yield _line([ours.rule, *own, *others, speedups.get(ours.rule, "")])


def _peer_cell(results: Iterable[Result], rule: str, peer: str) -> str:
    for one in results:
        if (one.rule, one.peer) == (rule, peer):
            extra = "" if one.extra_mb is None else f" ({megabytes(one.extra_mb)})"
            return number(one.ms) + extra
    return ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"
