"""`fedagg bench kernels`: aggregation rules timed beside other libraries."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Annotated, Final, TypeAlias

import psutil
import typer
from rich.console import Console
from rich.markup import escape

from cli.bench.cases import CASES, LEAST_ROWS
from cli.bench.machine import describe_machine, measure_matrix_product
from cli.bench.measure import Effort, Say, measure_size
from cli.bench.peers import PEERS, PeerMissing, load_ways
from cli.bench.report import markdown, write_tables
from cli.bench.results import OURS, LeftOut, Report, Result, Size
from cli.bench.ways import Ways
from cli.exit_codes import CliError, ExitCode
from cli.output import Output, OutputFormat

app = typer.Typer(help="Measure this machine.", no_args_is_help=True)

Shape: TypeAlias = tuple[int, int]

_DEFAULT: Final[Shape] = (100, 1_000_000)
_ALL: Final[Sequence[Shape]] = (_DEFAULT, (20, 10_000_000), (1000, 100_000))
_ROWS_SHARE: Final = 0.5  # of the memory that is available


class TableFormat(Enum):
    """How the benchmark answers."""

    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"


@app.callback()
def _group() -> None:
    """Make `kernels` a subcommand, though it is the only one."""


@app.command("kernels")
def kernels(
    n: Annotated[
        int | None, typer.Option("--n", min=LEAST_ROWS, help="Updates.", show_default="100")
    ] = None,
    d: Annotated[
        int | None, typer.Option("--d", min=1, help="Values of each.", show_default="1000000")
    ] = None,
    all_sizes: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Without --n and --d: 100 x 1,000,000, 20 x 10,000,000 and 1,000 x 100,000.",
        ),
    ] = False,
    rules: Annotated[
        str, typer.Option("--rules", help=f"With commas between; of {', '.join(CASES)}.")
    ] = ",".join(CASES),
    peers: Annotated[
        str, typer.Option("--peers", help="With commas between; those not installed are left out.")
    ] = ",".join(PEERS),
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="Calls timed of each; the median counts.")
    ] = 7,
    budget_s: Annotated[
        float, typer.Option("--budget-s", min=0, help="Seconds of calls of each, at least one.")
    ] = 10.0,
    limit_s: Annotated[
        float, typer.Option("--limit-s", min=0, help="Leave out what takes longer for one call.")
    ] = 60.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the updates drawn.")] = 0,
    output_format: Annotated[
        TableFormat,
        typer.Option("--format", help="Write tables for people or for a page, or one JSON object."),
    ] = TableFormat.TABLE,
) -> None:
    """Time aggregation rules beside other libraries, and beside reading the updates once."""
    is_json = output_format is TableFormat.JSON
    with Output(OutputFormat.JSON if is_json else OutputFormat.TEXT) as output:
        shapes = _shapes(n, d, all_sizes)
        chosen = _chosen("--rules", rules, tuple(CASES))
        if not chosen:
            message = f"--rules must name at least one of {', '.join(CASES)}"
            raise CliError(message, exit_code=ExitCode.USAGE)
        ways, missing = _load(_chosen("--peers", peers, PEERS))
        settings: dict[str, object] = {
            "rules": chosen,
            "peers": list(ways),
            "repeats": repeats,
            "budget_s": budget_s,
            "limit_s": limit_s,
            "seed": seed,
        }
        effort = Effort(repeats=repeats, budget_s=budget_s, limit_s=limit_s)
        with _progress(output.stderr) as say:
            for one in missing:
                say(f"{one.peer} is left out: {one.reason}")
            sizes: list[Size] = []
            results: list[Result] = []
            left_out = missing
            for shape in shapes:
                found = measure_size(shape, chosen, ways, effort, seed=seed, say=say)
                sizes.append(found[0])
                results += found[1]
                left_out += found[2]
            say("multiplying matrices")
            report = Report(
                machine=describe_machine(),
                settings=settings,
                matrix_product_gflops=measure_matrix_product(),
                sizes=sizes,
                results=results,
                left_out=left_out,
            )
        _write(report, output, output_format)


def _write(report: Report, output: Output, output_format: TableFormat) -> None:
    match output_format:
        case TableFormat.JSON:
            output.json(report.as_json())
        case TableFormat.MARKDOWN:
            sys.stdout.write(markdown(report))
        case TableFormat.TABLE:
            write_tables(report, output)


def _shapes(num_rows: int | None, dim: int | None, all_sizes: bool) -> Sequence[Shape]:
    one = (_DEFAULT[0] if num_rows is None else num_rows, _DEFAULT[1] if dim is None else dim)
    shapes = _ALL if all_sizes and num_rows is None and dim is None else (one,)
    available = psutil.virtual_memory().available
    for rows, columns in shapes:
        if 4 * rows * columns > _ROWS_SHARE * available:
            message = f"--n={rows} updates of --d={columns} values are {4e-9 * rows * columns:.1f}"
            message += f" GB, more than half of the {available / 1e9:.1f} GB that are available"
            raise CliError(message, exit_code=ExitCode.USAGE)
    return shapes


def _chosen(option: str, text: str, known: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in known and name != OURS]
    if unknown:
        message = f"{option}={unknown[0]} is unknown; there are {', '.join(known)}"
        raise CliError(message, exit_code=ExitCode.USAGE)
    return [name for name in names if name != OURS]


def _load(peers: Sequence[str]) -> tuple[dict[str, Ways], list[LeftOut]]:
    ways: dict[str, Ways] = {}
    missing: list[LeftOut] = []
    for peer in peers:
        try:
            ways[peer] = load_ways(peer)
        except PeerMissing as reason:
            missing.append(LeftOut(peer=peer, reason=str(reason)))
    return ways, missing


@contextmanager
def _progress(console: Console) -> Iterator[Say]:
    """Tell what is being measured: on one line of a terminal, else line by line."""
    if not console.is_terminal:
        yield lambda text: console.print(escape(text))
        return
    with console.status("starting") as status:
        yield lambda text: status.update(escape(text))
