"""Writing a model file as a whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from cli.exit_codes import CliError, ExitCode

_MODE = 0o644


def refuse_existing(path: Path, *, force: bool) -> None:
    """Refuse to replace a file that nobody said may be replaced.

    Raises:
        CliError: if there is one, or the path is a folder.
    """
    if path.is_dir():
        msg = f"--output {path} is a folder"
        raise CliError(msg, exit_code=ExitCode.USAGE)
    if path.exists() and not force:
        msg = f"--output {path} exists; --force replaces it"
        raise CliError(msg, exit_code=ExitCode.USAGE)


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write that takes its place at the end, and leaves nothing after an error.

    Missing folders are made. What is at `path` is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(number, "w+b") as file:
            yield file
            file.flush()
            os.fchmod(number, _MODE & ~_umask())
            os.fsync(number)
        Path(name).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
