import io

from rich.console import Console

from cli.demo.view import DemoView
from tests.cli.demo.test_report import ROUND


def _console(*, is_terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=120, force_terminal=is_terminal, highlight=False), file


def test_without_a_terminal_there_are_lines_and_nothing_else() -> None:
    console, file = _console(is_terminal=False)
    with DemoView(console, 15) as view:
        view.say("[begin]")
        view.phase("round 1: 3 devices wait")
        view.finished(ROUND)
    lines = file.getvalue().splitlines()
    assert lines[0] == "[begin]"
    assert lines[1].startswith("[ROUND 3/15] accuracy 0.9123")
    assert len(lines) == 2


def test_a_terminal_also_shows_the_phase() -> None:
    console, file = _console(is_terminal=True)
    with DemoView(console, 15) as view:
        view.phase("round 1: 3 devices wait")
        view.finished(ROUND)
    assert "round 1: 3 devices wait" in file.getvalue()
    assert "[ROUND 3/15]" in file.getvalue()
    assert "1/15 rounds" in file.getvalue()


def test_without_a_console_nothing_is_written() -> None:
    with DemoView(None, 15) as view:
        view.say("a")
        view.phase("b")
        view.finished(ROUND)
