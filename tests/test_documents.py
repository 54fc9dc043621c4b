"""Documents name files, modules and pages that are there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
_LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
_PATH = re.compile(r"`((?:[\w.-]+/)+[\w.-]*)`")
_MODULE = re.compile(
    r"`(?:python3? -m )?((?:aggregators|client|monitoring|privacy|security|server|simulation"
    r"|updates)(?:\.\w+)+)`"
)
_MADE_LATER = ("models/", "data/", ".venv", ".benchmarks/", "build/", "dist/", "/etc/", "/var/")


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def _dead_links(page: Path) -> Iterator[str]:
    for file, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            yield f"{file}#{anchor}"


def _is_module(name: str) -> bool:
    """Whether the leading part of a dotted name is a module of ours that defines what follows."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        stem = ROOT.joinpath(*parts[:length])
        file = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
        if file.exists():
            rest = parts[length:]
            return (
                not rest
                or re.search(rf"\b{rest[0]}\b", file.read_text(encoding="utf-8")) is not None
            )
    return False


def _missing_files(page: Path, files: list[str]) -> Iterator[str]:
    text = page.read_text(encoding="utf-8")
    for path in _PATH.findall(text):
        inside = f"/{path.rstrip('/')}"
        if path.startswith(_MADE_LATER) or (ROOT / path).exists():
            continue
        if not any(
            file.endswith((inside, f"{inside}.py")) or f"{inside}/" in file for file in files
        ):
            yield path
    yield from (name for name in _MODULE.findall(text) if not _is_module(name))


@pytest.fixture(scope="module")
def files() -> list[str]:
    """Source files of the tree, from its root, each with a leading slash."""
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."]
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [f"/{path.relative_to(ROOT)}" for path in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_what_is_there(page: Path, files: list[str]) -> None:
    assert not list(_dead_links(page))
    assert not list(_missing_files(page, files))


def test_what_is_gone_is_noticed(tmp_path: Path, files: list[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One\n[a](#two) [b](gone.md) `server/gone.py` `server.gone.Thing` `server/app.py`"
    )
    assert list(_dead_links(page)) == ["#two", "gone.md#"]
    assert list(_missing_files(page, files)) == ["server/gone.py", "server.gone.Thing"]
