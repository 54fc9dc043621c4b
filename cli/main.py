"""The `fedagg` command; see `cli.exit_codes` for what its exit statuses mean."""

import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Final

import click
import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from cli.serve.signals import terminate_as_interrupt
from server.processes.process_end import end_process

_INTERRUPTED: Final = 130  # as `cli.exit_codes` has it, which loads more than is needed here


@dataclass(frozen=True, slots=True)
class _Command:
    """Where a command is, and what the list of commands says of it."""

    home: str
    help: str


# A command loads what it needs itself, and not what the others need; their list loads none.
_COMMANDS: Final = {
    "demo": _Command(
        "cli.demo.command",
        "Train one model with simulated devices through two coordinators and a store of their own.",
    ),
    "serve": _Command(
        "cli.serve.command",
        "Run the coordinators, and the embedded store if one is configured, until SIGTERM.",
    ),
    "device": _Command(
        "cli.device.command",
        "Run simulated devices until their task is finished, --max-rounds or SIGTERM.",
    ),
    "models": _Command("cli.models.command", "Model files: make one, bring one in, bring one out."),
    "admin": _Command(
        "cli.admin.app",
        "Look into and steer a running server; keys, tokens and the audit log.",
    ),
    "config": _Command("cli.config.command", "Configuration files."),
    "share-holder": _Command("cli.holder.command", "Share holders of shared rounds."),
}


class _Commands(TyperGroup):
    """Finds a command in the module that is its home: the typer application `app` there."""

    _lists = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands, the usual ones first."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one command; for the list of them, tell what is known without it."""
        del ctx
        known = _COMMANDS.get(cmd_name)
        if known is None:
            return None
        if self._lists:
            return TyperCommand(cmd_name, help=known.help)
        command = get_command(import_module(known.home).app)
        command.name = cmd_name
        return command

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help, which lists the commands."""
        self._lists = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._lists = False


app = typer.Typer(
    name="fedagg",
    cls=_Commands,
    help="Federated aggregation: run the service, simulated devices, or a demonstration of both.",
    epilog=(
        "Exit status: 0 done, 1 failed, 2 wrong arguments, 3 wrong configuration, "
        "4 server cannot be reached, 5 server refused, 130 interrupted."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def main() -> None:
    """Run the command line of this process, and end the process."""
    try:
        with terminate_as_interrupt():
            app()
    except SystemExit as end:
        end_process(end.code)
    except KeyboardInterrupt:
        sys.stderr.write("fedagg: interrupted\n")
        end_process(_INTERRUPTED)


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"fedagg {version('fedagg')}")
        except PackageNotFoundError:
            typer.echo("fedagg (not installed)")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    del show_version  # the callback has answered


if __name__ == "__main__":
    main()
