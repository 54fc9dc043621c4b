"""`fedagg config`: configuration files."""

from pathlib import Path
from typing import Annotated

import typer

from cli.exit_codes import ExitCode
from cli.output import FormatOption, Output, OutputFormat
from server.config import ConfigError, load_config

app = typer.Typer(help="Configuration files.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Make `check` a subcommand, though it is the only one."""


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="Server configuration (TOML).")],
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Read a server configuration, environment overrides included, and tell what is wrong."""
    with Output(output_format) as output:
        try:
            settings = load_config(file)
        except ConfigError as error:
            problems = error.problems
        else:
            problems = ()
        if output.is_json:
            output.json({"file": str(file), "ok": not problems, "problems": problems})
        elif problems:
            for problem in problems:
                output.error(problem, ExitCode.CONFIG)
        else:
            tasks = ", ".join(task.name for task in settings.tasks) or "none"
            output.line(f"{file} is valid; tasks: {tasks}")
        if problems:
            raise typer.Exit(ExitCode.CONFIG)
