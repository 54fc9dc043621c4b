"""`fedagg admin tasks|rounds|models`: what the server knows, and rolling a model back."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Final

import typer
from pydantic import BaseModel

from cli.admin.client import DEFAULT_URL, AdminClient, TaskOption, TokenOption, UrlOption
from cli.exit_codes import CliError, ExitCode
from cli.output import FormatOption, Output, OutputFormat
from protos.wire import MAX_LISTED_ROUNDS
from server.admin.answers import ModelInfo, RoundSummary

tasks_app = typer.Typer(help="Learning tasks.", no_args_is_help=True)
rounds_app = typer.Typer(help="Finished rounds.", no_args_is_help=True)
models_app = typer.Typer(help="Published model versions.", no_args_is_help=True)

VersionArgument = Annotated[int, typer.Argument(min=1, help="Model version.")]

_HASH_CHARS: Final = 12


@tasks_app.command("list")
def list_tasks(
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = None,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """List all tasks."""
    with Output(output_format) as output, AdminClient(url, token) as client:
        found = client.tasks()
        rows = [
            (t.task, t.phase, f"{t.published_rounds}/{t.num_rounds}", t.model_version)
            for t in found
        ]
        _tell(output, found, ("task", "phase", "rounds", "model"), rows)


@tasks_app.command("show")
def show_task(
    task: TaskOption = None,
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = None,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Show a task's phase, round and current model."""
    with Output(output_format) as output, AdminClient(url, token) as client:
        _tell_one(output, client.task(client.only_task(task)))


@rounds_app.command("list")
def list_rounds(
    task: TaskOption = None,
    limit: Annotated[
        int,
        typer.Option("--limit", min=1, max=MAX_LISTED_ROUNDS, help="At most so many, the latest."),
    ] = 20,
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = None,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """List finished rounds, newest first."""
    with Output(output_format) as output, AdminClient(url, token) as client:
        found = client.rounds(client.only_task(task), limit=limit)
        columns = ("round", "decision", "model", "accepted", "rejected", "excluded", "seconds")
        _tell(output, found, columns, [_round_row(one) for one in found])


@rounds_app.command("show")
def show_round(
    number: Annotated[int, typer.Argument(min=1, help="Round number.")],
    task: TaskOption = None,
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = None,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Show one finished round."""
    with Output(output_format) as output, AdminClient(url, token) as client:
        found = client.rounds(client.only_task(task), limit=MAX_LISTED_ROUNDS)
        wanted = next((one for one in found if one.number == number), None)
        if wanted is None:
            msg = f"round {number} is not among the latest {len(found)} finished rounds"
            raise CliError(msg, exit_code=ExitCode.REFUSED)
        _tell_one(output, wanted)


@rounds_app.command("replay")
def replay_round(
    number: Annotated[int, typer.Argument(min=1, help="Round number.")],
    task: TaskOption = None,
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = None,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Build a round's version again from what was kept of it; fail unless it has the same bytes."""
    with Output(output_format) as output, AdminClient(url, token) as client:
        found = client.replay(client.only_task(task), number)
        _tell_one(output, found)
        if not found.is_same:
            msg = f"version {found.model_version} of round {number}: {found.problem}"
            raise CliError(msg)


@models_app.command("list")
def list_models(
    task: TaskOption = None,
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = None,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """List published model versions, newest first; * marks the current one."""
    with Output(output_format) as output, AdminClient(url, token) as client:
        name = client.only_task(task)
        current = client.task(name).model_version
        found = client.models(name)
        columns = ("", "version", "parent", "round", "created", "bytes", "sha256")
        _tell(output, found, columns, [_model_row(one, current) for one in found])


@models_app.command("show")
def show_model(
    version: VersionArgument,
    task: TaskOption = None,
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = None,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Show one published model version."""
    with Output(output_format) as output, AdminClient(url, token) as client:
        _tell_one(output, client.model(client.only_task(task), version))


@models_app.command("rollback")
def rollback_model(
    version: VersionArgument,
    task: TaskOption = None,
    url: UrlOption = DEFAULT_URL,
    token: TokenOption = None,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Make an earlier version current; the round under way is abandoned."""
    with Output(output_format) as output, AdminClient(url, token) as client:
        name = client.only_task(task)
        restored = client.rollback(name, version)
        if output.is_json:
            output.json(restored.model_dump())
        else:
            output.line(f"version {restored.version} is the current model of {name}")


def _round_row(one: RoundSummary) -> tuple[object, ...]:
    seconds = (one.finished_at_ms - one.started_at_ms) / 1000
    decision = f"{one.decision} ({one.reason})" if one.reason else one.decision
    counts = (one.accepted, one.rejected, one.excluded)
    return (one.number, decision, one.model_version, *counts, f"{seconds:.2f}")


def _model_row(one: ModelInfo, current: int) -> tuple[object, ...]:
    created = datetime.fromtimestamp(one.created_at_ms / 1000, UTC)
    return (
        "*" if one.version == current else "",
        one.version,
        one.parent,
        one.round_number,
        f"{created:%Y-%m-%d %H:%M:%S}Z",
        one.size_bytes,
        one.sha256[:_HASH_CHARS],
    )


def _tell(
    output: Output,
    found: Sequence[BaseModel],
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
) -> None:
    if output.is_json:
        output.json([one.model_dump() for one in found])
    else:
        output.table(columns, rows)


def _tell_one(output: Output, found: BaseModel) -> None:
    if output.is_json:
        output.json(found.model_dump())
    else:
        output.facts(found.model_dump())
