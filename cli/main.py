"""The `fedagg` command; see `cli.exit_codes` for what its exit statuses mean."""

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from cli import config, device, serve, share_holder
from cli.admin.app import app as admin_app
from cli.bench.command import app as bench_app
from cli.demo.command import demo

app = typer.Typer(
    name="fedagg",
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
    """Run the command line of this process."""
    app()


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


app.command("demo")(demo)
app.command("serve")(serve.serve)
app.command("device")(device.device)
app.add_typer(admin_app, name="admin")
app.add_typer(config.app, name="config")
app.add_typer(share_holder.app, name="share-holder")
app.add_typer(bench_app, name="bench")

if __name__ == "__main__":
    main()
