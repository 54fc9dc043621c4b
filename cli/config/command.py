"""`fedagg config`: configuration files."""

import time
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from cli.exit_codes import ExitCode
from cli.output import FormatOption, Output, OutputFormat
from server.config import ConfigError, HolderConfig, load_settings
from server.holder.preparation import prepare_holder
from server.preparation import prepare_server
from server.processes.thread_pool import Workers

app = typer.Typer(help="Configuration files.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Make `check` a subcommand, though it is the only one."""


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="Coordinator's or share holder's file (TOML).")],
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Open a configuration as its process would, and tell everything that is wrong.

    Environment overrides are applied, and the files that it names are read. No store, share holder
    or address is called, and nothing is written.
    """
    with Output(output_format) as output:
        kind, found = "", ""
        problems: tuple[str, ...] = ()
        try:
            kind, found = _opened(file)
        except ConfigError as error:
            problems = error.problems
        if output.is_json:
            output.json({"file": str(file), "ok": not problems, "problems": problems})
        elif problems:
            for problem in problems:
                output.error(problem, ExitCode.CONFIG)
        else:
            output.line(f"{file} is valid; {kind}: {found}")
        if problems:
            raise typer.Exit(ExitCode.CONFIG)


def _opened(file: Path) -> tuple[str, str]:
    """Open the file; tell its kind and what is in it.

    Raises:
        ConfigError: naming everything that is wrong.
    """
    problems: tuple[str, ...] = ()
    try:
        settings = load_settings(file)
    except ConfigError as error:
        if error.settings is None:
            raise
        settings, problems = error.settings, error.problems
    if isinstance(settings, HolderConfig):
        me = prepare_holder(settings, problems=problems).me
        return "share holder", f"{me.index} of {len(me.committee.holders)}"
    with closing(Workers("accountant", threads=1)) as accountants:
        server = prepare_server(
            settings, accountants=accountants, now_s=time.time(), problems=problems
        )
    return "tasks", ", ".join(task.info.name for task in server.tasks)
