"""Import every module once, so that its bytecode and that of what it imports is kept.

`python -m tools.bytecode` is part of the set-up: where an environment forbids to write bytecode, as
containers do, every process would compile all that it imports at every start. Modules whose extra
is not installed are left out.
"""

import importlib
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent


def modules() -> Iterator[str]:
    """Name all modules of all packages, without importing any."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for package in project["tool"]["importlinter"]["root_packages"]:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def main() -> None:
    """Import them."""
    sys.dont_write_bytecode = False
    for name in modules():
        with suppress(ImportError):
            importlib.import_module(name)


if __name__ == "__main__":
    main()
