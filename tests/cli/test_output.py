import json

import pytest
import typer

from cli.exit_codes import CliError, ExitCode
from cli.output import Output, OutputFormat


def _exit_code(raised: pytest.ExceptionInfo[typer.Exit]) -> int:
    return int(raised.value.exit_code)


def test_a_known_error_is_told_on_standard_error_and_becomes_the_status(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(typer.Exit) as raised, Output(OutputFormat.TEXT):
        raise CliError("no [such] thing", exit_code=ExitCode.REFUSED)
    assert _exit_code(raised) == ExitCode.REFUSED
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "fedagg: no [such] thing\n"


def test_errors_are_json_beside_a_json_answer(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), Output(OutputFormat.JSON):
        raise CliError("gone", exit_code=ExitCode.UNREACHABLE)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err) == {"error": "gone", "exit_code": 4}


def test_an_interruption_has_a_status_of_its_own() -> None:
    with pytest.raises(typer.Exit) as raised, Output(OutputFormat.TEXT):
        raise KeyboardInterrupt
    assert _exit_code(raised) == ExitCode.INTERRUPTED


def test_a_defect_passes_with_its_stack() -> None:
    with pytest.raises(ZeroDivisionError), Output(OutputFormat.TEXT):
        raise ZeroDivisionError


def test_a_chosen_exit_passes() -> None:
    with pytest.raises(typer.Exit) as raised, Output(OutputFormat.TEXT):
        raise typer.Exit(3)
    assert _exit_code(raised) == 3


def test_json_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        Output(OutputFormat.JSON).json({"loss": float("nan")})


def test_text_is_never_taken_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(OutputFormat.TEXT)
    output.line("[bold]a[/]")
    output.table(("name", "value"), [("[red]", None), ("b", 2)])
    output.facts({"model_version": 3})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == [["[bold]a[/]"], ["name", "value"], ["[red]"], ["b", "2"]]
    assert lines[-1] == ["model", "version", "3"]
