"""Removes what a command leaves in the file system, however the command ends.

A process of its own waits until the command, and every process that was handed `Guardian.fd`, has
ended: in order, by a signal, or by SIGKILL. Then it removes the paths it was told and ends too.
"""

import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

# A terminal that closes, or is interrupted, tells every process of its session.
_PROGRAM: Final = """
import shutil, signal, sys
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
for path in sys.stdin.buffer.read().split(b"\\0"):
    if path:
        shutil.rmtree(path, ignore_errors=True)
"""


class Guardian:
    """A context; what it guards is gone when it is left."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.fd = -1
        """Give it to every process that writes into what is guarded."""

    def __enter__(self) -> Self:
        reads, self.fd = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603  # our own program
                [sys.executable, "-I", "-S", "-c", _PROGRAM],
                stdin=reads,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            os.close(self.fd)
            raise
        finally:
            os.close(reads)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self.fd)
        if self._process is not None:
            self._process.wait()

    def guard(self, path: Path) -> None:
        """Have a folder removed at the end, whether it is there already or not."""
        os.write(self.fd, os.fsencode(path.absolute()) + b"\0")

    def folder(self, prefix: str) -> Path:
        """Make a folder for temporary files, for this user only."""
        path = Path(tempfile.gettempdir(), f"{prefix}{secrets.token_hex(4)}")
        self.guard(path)
        path.mkdir(mode=0o700)
        return path
