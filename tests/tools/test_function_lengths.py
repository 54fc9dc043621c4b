"""The check of functions' lengths can fail, in each of its three ways."""

import pytest

from tools import function_lengths
from tools.function_lengths import COMPILED, CONTRACT, MOST_LINES, problems


def function(name: str, lines: int, *, docstring_lines: int = 0) -> str:
    docstring = ['    """'] + [""] * (docstring_lines - 2) + ['    """'] if docstring_lines else []
    body = ["    pass"] * (lines - 1 - docstring_lines)
    return "\n".join([f"def {name}():", *docstring, *body])


@pytest.fixture(autouse=True)
def _listed(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {CONTRACT: {"a.py": ("told",)}, COMPILED: {"b.py": ("kernel",)}}
    monkeypatch.setattr(function_lengths, "EXCEPTIONS", listed)


SOURCES = {
    "a.py": function("told", MOST_LINES + 2, docstring_lines=2) + "\n" + function("f", MOST_LINES),
    "b.py": function("kernel", MOST_LINES + 1),
}


def test_a_function_of_forty_lines_and_those_listed_pass() -> None:
    assert problems(SOURCES) == []


def test_a_longer_one_that_is_not_listed_is_named() -> None:
    method = "class C:\n    async " + function("f", MOST_LINES + 1).replace("\n", "\n    ")
    sources = {**SOURCES, "c.py": method}
    assert problems(sources) == ["c.py: f has 41 lines, more than 40"]


def test_a_listed_one_that_is_short_or_gone_is_named() -> None:
    sources = {**SOURCES, "b.py": function("kernel", MOST_LINES)}
    assert problems(sources) == ["b.py: kernel is listed, and short"]
    assert problems({"a.py": SOURCES["a.py"]}) == ["b.py: kernel is listed, and short"]


def test_code_may_not_hide_behind_a_contract() -> None:
    sources = {**SOURCES, "a.py": function("told", MOST_LINES + 3, docstring_lines=2)}
    assert problems(sources) == ["a.py: told has more than 40 lines of code"]
