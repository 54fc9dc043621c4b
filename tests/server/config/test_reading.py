"""Wrong values are told in our own words, whatever they are, and never the library's."""

import datetime as dt
import re
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal

import pytest
from pydantic import Field, SecretStr

from server.config.holder_config import HolderConfig
from server.config.reading import read_section, setting_paths
from server.config.section import Section, UnreadableSetting
from server.config.server_config import ServerConfig
from server.config.task_config import TaskConfig
from tests.looped import looped


class _Colour(Enum):
    RED = "red"
    BLUE = "blue"


class _Inner(Section):
    whole: int = Field(default=1, ge=1, le=9)
    share: float = Field(default=0.5, gt=0, lt=1)


class _Outer(Section):
    flag: bool = False
    text: str = Field(default="", max_length=3)
    secret: SecretStr | None = Field(default=None, min_length=8)
    path: Path = Path()
    colour: _Colour = _Colour.RED
    colours: tuple[_Colour, ...] = ()
    choice: Literal["a", "b"] | None = None
    names: tuple[str, ...] = ()
    numbers: dict[str, float] = Field(default_factory=dict)
    needed_here: int
    inner: _Inner = _Inner()
    inners: tuple[_Inner, ...] = Field(default=(), alias="item")


@looped(
    "tree, told",
    [
        ({"flag": "perhaps"}, 'flag: must be true or false, got "perhaps"'),
        ({"text": 3}, "text: must be text, got 3"),
        ({"text": "long"}, 'text: must have at most 3 characters, got "long"'),
        ({"secret": "hunter2"}, "secret: must have at least 8 characters"),
        ({"secret": ["hunter2"]}, "secret: must be text"),
        ({"path": 1.5}, "path: must be text, got 1.5"),
        ({"colour": "gren"}, 'colour: must be one of red, blue, got "gren"'),
        ({"colours": ["red", "gren"]}, 'colours[2]: must be one of red, blue, got "gren"'),
        ({"colours": "red"}, 'colours: must be a list, got "red"'),
        ({"choice": "c"}, 'choice: must be one of a, b, got "c"'),
        ({"names": ["x", 1]}, "names[2]: must be text, got 1"),
        ({"numbers": {"x": "y"}}, 'numbers.x: must be a finite number, got "y"'),
        ({"numbers": 1}, "numbers: must be a table, got 1"),
        ({"needed-here": True, "flag": []}, "flag: must be true or false, got a list"),
        ({"needed-here": 1.5}, "needed-here: must be a whole number, got 1.5"),
        ({"needed_here": 1}, "needed_here: unknown key, did you mean needed-here?"),
        ({"whole": 1}, "whole: unknown key, did you mean inner.whole?"),
        ({"zzz": 1}, "zzz: unknown key"),
        ({"inner": 1}, "inner: must be a section, written as [inner]"),
        ({"item": {}}, "item: must be a list of sections, each written as [[item]]"),
        (
            {"item": [{}, {"whole": 10}]},
            "item[2].whole: must be a whole number, at least 1 and at most 9, got 10",
        ),
        (
            {"inner": {"share": float("nan")}},
            "inner.share: must be a finite number, above 0 and below 1, got nan",
        ),
        ({"path": dt.date(2026, 1, 2)}, "path: must be text, got 2026-01-02"),
    ],
)
def test_a_wrong_value_is_told_by_its_rule(tree: dict[str, object], told: str) -> None:
    problems: list[str] = []
    read_section(_Outer, {"needed-here": 1} | tree, problems)
    assert problems[0] == told


def test_what_is_wrong_leaves_a_hole_and_nothing_else() -> None:
    problems: list[str] = []
    outer = read_section(_Outer, {"flag": 7, "inner": {"whole": 0}, "text": "ok"}, problems)
    assert sorted(problems) == [
        "flag: must be true or false, got 7",
        "inner.whole: must be a whole number, at least 1 and at most 9, got 0",
        "needed-here: must be given",
    ]
    assert (outer.text, outer.path, outer.inner.share) == ("ok", Path(), 0.5)
    for section, name in ((outer, "flag"), (outer, "needed_here"), (outer.inner, "whole")):
        with pytest.raises(UnreadableSetting, match=name):
            getattr(section, name)


def test_what_stands_before_an_at_sign_of_a_url_is_not_shown() -> None:
    problems: list[str] = []
    url = "redis+sentinel://me:hunter2@host"
    read_section(ServerConfig, {"store": {"url": url}}, problems)
    assert "sentinel" in problems[0]
    assert "hunter2" not in problems[0]


NONSENSE: Final[tuple[Any, ...]] = (
    "",
    "?",
    -1,
    1 << 80,
    1.5,
    -1e300,
    float("inf"),
    float("nan"),
    True,
    [],
    ["?"],
    [[]],
    [{}],
    {},
    {"?": "?"},
    dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
)
FOREIGN: Final = re.compile(r"pydantic|https?://\w|Input |input |Value error|_type")


@pytest.mark.parametrize("kind", [ServerConfig, HolderConfig])
def test_whatever_a_setting_is_given_each_problem_is_one_line_in_our_words(
    kind: type[Section],
) -> None:
    for path in setting_paths(kind):
        for value in NONSENSE:
            tree: Any = value
            for key in reversed(path.split(".")):
                tree = {key: tree}
            if "task" in tree:
                tree = {"task": [tree["task"]]}
            problems: list[str] = []
            read_section(kind, tree, problems)
            for problem in problems:
                assert FOREIGN.search(problem) is None
                assert re.match(r"[a-z0-9.?\[\]-]+: ", problem), problem
                assert len(problem) < 400


def test_the_paths_of_a_task_are_those_of_its_sections() -> None:
    assert {"name", "plan.learning-rate", "sharing.committee"} <= set(setting_paths(TaskConfig))
