"""The figures of a tree whose figures are known."""

from pathlib import Path

import pytest

from tools.rooms import circles_of, imports_of, long_functions, main, package

FILES = {
    "server/__init__.py": "",
    "server/app.py": "from server.round.state import Round\nfrom server import wire\n",
    "server/wire.py": "def late():\n    import server.round.state\n",
    "server/round/__init__.py": "",
    "server/round/state.py": "from server.round import terms\nimport server.wire\n",
    "server/round/terms.py": "if TYPE_CHECKING:\n    import server.round.state\n",
    "client/long.py": "def long():\n" + "    pass\n" * 40,
    "tests/test_it.py": "\n" * 7,
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_rooms_are_counted_with_the_arrows_between_them(tree: Path) -> None:
    found = package(imports_of(tree), "server")
    # app > round, app > wire, and wire > round, though late, and round > wire, which is a circle.
    assert (found.rooms, found.loose_files, found.arrows, found.in_circles) == (3, 2, 4, 2)


def test_modules_in_circles_are_found_for_types_too(tree: Path) -> None:
    imports = imports_of(tree)
    assert circles_of(imports) == [{"server.round.state", "server.round.terms", "server.wire"}]
    imports["server.round.terms"].clear()
    assert circles_of(imports) == [{"server.round.state", "server.wire"}]


def test_a_tree_is_told_in_lines(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["rooms", str(tree)])
    main()
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "modules that import each other in a circle: 3"
    assert "server: 3 rooms (2 of them loose files), 4 arrows, 2 of them in circles" in told
    assert told[-3:] == [
        "functions over 40 lines: 1",
        "lines of the product: 49",
        "lines of tests: 7",
    ]
    assert long_functions(tree) == [(41, "client/long.py", "long")]
