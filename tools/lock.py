"""Write the locks: one exact version of every package, for Python 3.11 to 3.13.

`requirements.lock` holds what the dev extra asks for, which is all that the project's own code and
tests use; `requirements-peers.lock` what the libraries need that are only compared with.

The versions already in a lock are kept wherever pyproject.toml still allows them, so a new
dependency changes only its own lines. Remove the file first to take the newest of everything.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
HEADER: Final = "# Written by `make lock` from pyproject.toml. Do not edit.\n"
LOCKS: Final[Mapping[str, str]] = {"requirements.lock": "dev", "requirements-peers.lock": "peers"}


def resolve(lock: Path, extra: str) -> int:
    """Resolve an extra and rewrite its lock; return the resolver's exit status."""
    command = [
        *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--extra", extra),
        *("--python-version", "3.11", "--no-annotate", "--no-header"),
        *("--output-file", str(lock), "pyproject.toml"),
    ]
    status = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode
    if status == 0:
        lock.write_text(HEADER + lock.read_text())
    return status


def main() -> int:
    """Rewrite every lock; return the first exit status that is not 0."""
    return next(filter(None, (resolve(ROOT / name, LOCKS[name]) for name in LOCKS)), 0)


if __name__ == "__main__":
    sys.exit(main())
