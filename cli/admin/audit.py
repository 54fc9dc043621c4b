"""`fedagg admin audit`: is the audit log what the server wrote?"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.exit_codes import ExitCode
from cli.output import FormatOption, Output, OutputFormat
from monitoring.audit_logger import KEY_FILE, load_or_create_key, verify

audit_app = typer.Typer(help="The audit log.", no_args_is_help=True)


@audit_app.callback()
def _group() -> None:
    """Make `verify` a subcommand, though it is the only one."""


@audit_app.command("verify")
def verify_log(
    file: Annotated[Path, typer.Argument(help="The audit log (JSON lines).")],
    key_file: Annotated[
        Path | None,
        typer.Option("--key-file", help="The installation's key; default: audit.key beside it."),
    ] = None,
    expected_head: Annotated[
        str | None,
        typer.Option("--expected-head", help="Hash noted earlier that must be in the log."),
    ] = None,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Check every line of an audit log; exit status 1 where something is wrong.

    Without the key only the hash chain is checked, which whoever can write the file can rewrite.
    """
    with Output(output_format) as output:
        path = key_file or file.parent / KEY_FILE
        # Never made here: a new key would condemn every line.
        has_key = key_file is not None or path.exists()
        if has_key and not path.exists():
            raise FileNotFoundError(path)
        key = load_or_create_key(path) if has_key else None
        report = verify(file, key=key, expected_head=expected_head)
        if output.is_json:
            output.json({**asdict(report), "intact": report.is_intact, "key_checked": has_key})
        else:
            for problem in report.problems:
                output.error(problem, ExitCode.FAILURE)
            verdict = "intact" if report.is_intact else "NOT intact"
            checked = "chain and codes" if has_key else "chain only, no key"
            output.line(f"{file}: {verdict}, {report.entries} entries ({checked})")
            output.line(f"head {report.head}")
        if not report.is_intact:
            raise typer.Exit(ExitCode.FAILURE)
