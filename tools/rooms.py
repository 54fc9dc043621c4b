"""The house in figures: rooms, arrows and circles between them, loose files, lengths.

A room of a package is a folder or a file directly inside it; an arrow goes from a room to another
one that it imports, also for types alone; rooms that reach one another by arrows are a circle.
Everything is read from the source as text, so any tree can be counted, an old one too:
`python -m tools.rooms [TREE]`.
"""

import argparse
import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

PACKAGES: Final = (
    "aggregators",
    "cli",
    "client",
    "monitoring",
    "privacy",
    "security",
    "server",
    "simulation",
    "updates",
)
LONG_FUNCTION: Final = 40

Arrows: TypeAlias = Mapping[str, set[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """What a package's inside looks like.

    Attributes:
        loose_files: modules directly in its folder, `__init__` aside.
        rooms: folders and loose files.
        arrows: pairs of rooms of which the first imports the second.
        in_circles: arrows between rooms that also reach back.
    """

    loose_files: int
    rooms: int
    arrows: int
    in_circles: int


def imports_of(tree: Path) -> dict[str, set[str]]:
    """Map every module of the product to the modules of the product that it imports."""
    modules = {_name(path, tree): path for path in _product(tree)}
    return {name: set(_imported(path, modules)) - {name} for name, path in modules.items()}


def package(imports: Arrows, name: str) -> Package:
    """Count the rooms of one package."""
    arrows = _between_rooms(imports, name)
    circles = {room: circle for circle in circles_of(arrows) for room in circle}
    folders = {_room(module, name) for module in imports if module.count(".") > name.count(".") + 1}
    return Package(
        loose_files=len(set(arrows) - folders),
        rooms=len(arrows),
        arrows=sum(map(len, arrows.values())),
        in_circles=sum(
            target in circles.get(room, ())
            for room, targets in arrows.items()
            for target in targets
        ),
    )


def circles_of(arrows: Arrows) -> list[set[str]]:
    """Find the largest sets of more than one node in which every node reaches every other."""
    reached = {node: _reached(arrows, node) for node in arrows}
    found: list[set[str]] = []
    for node, targets in reached.items():
        circle = {other for other in targets if node in reached[other]}
        if node in circle and len(circle) > 1 and circle not in found:
            found.append(circle)
    return found


def long_functions(tree: Path) -> list[tuple[int, str, str]]:
    """List functions of more than `LONG_FUNCTION` lines: how long, in which file, of what name."""
    found = []
    for path in _product(tree):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONG_FUNCTION:
                    found.append((lines, str(path.relative_to(tree)), node.name))
    return sorted(found, reverse=True)


def lines_of(paths: Iterable[Path]) -> int:
    """Count the lines of files."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def report(tree: Path) -> Iterator[str]:
    """Tell the figures of a tree, a line each."""
    imports = imports_of(tree)
    circles = circles_of(imports)
    yield f"modules that import each other in a circle: {sum(map(len, circles))}"
    for name in PACKAGES:
        found = package(imports, name)
        yield (
            f"{name}: {found.rooms} rooms ({found.loose_files} of them loose files),"
            f" {found.arrows} arrows, {found.in_circles} of them in circles"
        )
    yield f"functions over {LONG_FUNCTION} lines: {len(long_functions(tree))}"
    yield f"lines of the product: {lines_of(_product(tree))}"
    yield f"lines of tests: {lines_of((tree / 'tests').rglob('*.py'))}"


def main() -> None:
    """Print the figures of the tree that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tools.rooms", description=__doc__)
    parser.add_argument("tree", nargs="?", type=Path, default=Path.cwd())
    for line in report(parser.parse_args().tree):
        sys.stdout.write(line + "\n")


def _product(tree: Path) -> list[Path]:
    return sorted(path for name in PACKAGES for path in (tree / name).rglob("*.py"))


def _name(path: Path, tree: Path) -> str:
    parts = path.relative_to(tree).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in modules:
                    yield full
                elif node.module in modules:
                    yield node.module


def _room(module: str, name: str) -> str:
    return module.removeprefix(f"{name}.").partition(".")[0]


def _between_rooms(imports: Arrows, name: str) -> dict[str, set[str]]:
    inside = [module for module in imports if module.startswith(f"{name}.")]
    arrows: dict[str, set[str]] = {_room(module, name): set() for module in inside}
    for module in inside:
        room = _room(module, name)
        arrows[room] |= {
            _room(target, name) for target in imports[module] if target.startswith(f"{name}.")
        } - {room}
    return arrows


def _reached(arrows: Arrows, start: str) -> set[str]:
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        fresh = arrows.get(waiting.pop(), set()) - reached
        reached |= fresh
        waiting += fresh
    return reached


if __name__ == "__main__":
    main()
