"""No module of the core is kept for tests alone: a process or the device SDK reaches each."""

import ast
from pathlib import Path
from typing import Final

import grimp
import pytest

from aggregators.registry import RULES

ROOT: Final = Path(__file__).parents[1]
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
CORE: Final = ("aggregators", "privacy", "updates")
SDK: Final = "client"

pytestmark = pytest.mark.slow  # the imports of all modules are read


@pytest.fixture(scope="module")
def tree() -> grimp.ImportGraph:
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    for module in sorted(graph.modules):
        for named in _named_modules(module) & graph.modules:
            # Loaded by name when it is needed first.
            graph.add_import(importer=module, imported=named)
    for rule in RULES:
        module = f"aggregators.rules.{rule.replace('-', '_')}"
        graph.add_import(importer="aggregators.registry", imported=module)
    return graph


def test_every_module_of_the_core_is_reached(tree: grimp.ImportGraph) -> None:
    assert unreached(tree) == set()


def test_a_module_that_only_tests_import_is_found(tree: grimp.ImportGraph) -> None:
    tree.add_module("privacy.planted")
    tree.add_module("updates.planted")
    # One that nothing reaches does not make what it imports reached.
    tree.add_import(importer="privacy.planted", imported="updates.planted")
    assert unreached(tree) == {"privacy.planted", "updates.planted"}
    tree.add_import(importer="server.app", imported="privacy.planted")
    assert unreached(tree) == set()


def unreached(graph: grimp.ImportGraph) -> set[str]:
    """List the modules of the core that no process and nothing of the SDK imports."""
    starts = {module for module in graph.modules if _is_start(module)}
    reached = starts.union(*(graph.find_upstream_modules(start) for start in starts))
    # Importing a module imports the packages that it is in.
    packages = {name.rsplit(".", depth)[0] for name in reached for depth in range(1, 4)}
    return {
        module for module in graph.modules - reached - packages if module.partition(".")[0] in CORE
    }


def _is_start(module: str) -> bool:
    if module == SDK or module.startswith(f"{SDK}."):
        return True
    return 'if __name__ == "__main__":' in _source(module)


def _named_modules(module: str) -> set[str]:
    return {
        node.value
        for node in ast.walk(ast.parse(_source(module)))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def _source(module: str) -> str:
    path = ROOT / module.replace(".", "/")
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.exists():
            return file.read_text(encoding="utf-8")
    return ""  # planted, or a folder without code
