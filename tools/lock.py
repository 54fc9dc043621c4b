"""Write requirements.lock: one exact version of every package, for Python 3.11 to 3.13.

It holds what the dev extra asks for, which is all that the project's own code and tests use.

The versions already in the file are kept wherever pyproject.toml still allows them, so a new
dependency changes only its own lines. Remove the file first to take the newest of everything.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
HEADER: Final = "# Written by `make lock` from pyproject.toml. Do not edit.\n"
# What torch's CUDA builds ask for. torch itself pins them, and its CPU builds need none of them,
# so naming them here would force a CUDA download on machines without a GPU.
ACCELERATOR: Final = re.compile(r"^(nvidia|cuda|triton)\b")


def pins(compiled: str) -> str:
    """Keep the requirement lines that do not belong to an accelerator."""
    lines = compiled.splitlines(keepends=True)
    return "".join(line for line in lines if not ACCELERATOR.match(line))


def main() -> int:
    """Resolve every extra and rewrite the lock; return the resolver's exit status."""
    lock = ROOT / "requirements.lock"
    command = [
        *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--extra", "dev"),
        *("--python-version", "3.11", "--no-annotate", "--no-header"),
        *("--output-file", str(lock), "pyproject.toml"),
    ]
    status = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode
    if status == 0:
        lock.write_text(HEADER + pins(lock.read_text()))
    return status


if __name__ == "__main__":
    sys.exit(main())
