"""A copy of the tree, with all that is not committed yet, in which faults are planted."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]

_OF_ANOTHER_RUN: Final = {
    "PYTEST_CURRENT_TEST",
    "PYTEST_XDIST_TESTRUNUID",
    "PYTEST_XDIST_WORKER",
    "PYTEST_XDIST_WORKER_COUNT",
}
_KERNEL_CACHES: Final = ("*.nbi", "*.nbc")


class Scratch:
    """A copy of the tree. Its tests run on its own modules."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._changed_at = int(time.time())

    def read(self, file: str) -> str:
        """Return a file's text."""
        return (self.folder / file).read_text(encoding="utf-8")

    def write(self, file: str, text: str) -> None:
        """Replace a file's text.

        Each time it gets another time stamp: what Python compiled before counts as current while
        size and second are the same.
        """
        self._changed_at += 2
        path = self.folder / file
        path.write_text(text, encoding="utf-8")
        os.utime(path, (self._changed_at, self._changed_at))

    def pytest(
        self, *arguments: str, environment: Mapping[str, str]
    ) -> "subprocess.CompletedProcess[str]":
        """Run pytest; what it writes is kept."""
        plugin = ("-p", "tools.planted_faults.plugin")
        # It is no part of the run that may have started this one.
        kept = {name: value for name, value in os.environ.items() if name not in _OF_ANOTHER_RUN}
        return subprocess.run(
            [sys.executable, "-m", "pytest", *plugin, *arguments],
            cwd=self.folder,
            env={**kept, "PYTHONPATH": str(self.folder), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )


@contextmanager
def scratch() -> Iterator[Scratch]:
    """Copy the tree into a worktree of its own, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="fedagg-faults-") as parent:
        folder = Path(parent, "tree")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(folder)], check=True)
        try:
            _copy_into(folder)
            yield Scratch(folder)
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def tree_sha256() -> str:
    """Name the content of the tree."""
    digest = hashlib.sha256()
    for name in _files():
        digest.update(name.encode() + b"\0")
        digest.update(hashlib.sha256((ROOT / name).read_bytes()).digest())
    return digest.hexdigest()


def _copy_into(folder: Path) -> None:
    """Make a worktree what the tree is now, time stamps included: compiled kernels go by them."""
    for path in folder.iterdir():
        if path.name != ".git":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    names = _files()
    caches = {
        str(cache.relative_to(ROOT))
        for name in {str(Path(name).parent) for name in names}
        for pattern in _KERNEL_CACHES
        for cache in (ROOT / name / "__pycache__").glob(pattern)
    }
    for name in [*names, *sorted(caches)]:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)


def _files() -> list[str]:
    """List all files that are committed or could be."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    names = sorted(set(filter(None, listed.stdout.split("\0"))))
    return [name for name in names if (ROOT / name).is_file()]
