"""Small files that only their owner can read, each replaced as a whole or not at all."""

import contextlib
import os
from pathlib import Path
from typing import Final, Protocol

_FILE_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o700
_TEMPORARY: Final = "~tmp"


class PrivateStore(Protocol):
    """Keeps bytes by name. Every call has taken effect, and lasts, when it returns."""

    def read(self, name: str) -> bytes | None:
        """Return what is kept under a name; None: nothing."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Keep `data`, in place of what the name had."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Move what `source` has to `target`, in place of what that had; nothing without it."""
        ...

    def remove(self, name: str) -> None:
        """Keep nothing under a name, whether there was something or not."""
        ...


class PrivateMemory:
    """Keeps bytes as long as the process lives."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def read(self, name: str) -> bytes | None:
        """Return what is kept under a name; None: nothing is."""
        return self._kept.get(name)

    def write(self, name: str, data: bytes) -> None:
        """Keep bytes under a name; replaces what is there."""
        self._kept[name] = data

    def rename(self, source: str, target: str) -> None:
        """Move what is kept to another name; nothing where there is none."""
        if source in self._kept:
            self._kept[target] = self._kept.pop(source)

    def remove(self, name: str) -> None:
        """Forget what is kept under a name, if anything is."""
        self._kept.pop(name, None)


class PrivateFolder:
    """Keeps bytes in files of one folder, for one process at a time.

    Guarantees:
        After a crash at any point, a name has what it had before a call or after it, nothing in
        between. Files can be read by their owner only. A call that returned survives the machine.
    """

    def __init__(self, folder: Path) -> None:
        """Make the folder where it is missing.

        Raises:
            OSError: if it cannot be made.
        """
        folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        self._folder = folder

    def read(self, name: str) -> bytes | None:
        """Return what is kept under a name; None: nothing.

        Raises:
            OSError: if the file cannot be read.
        """
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Keep `data`, in place of what the name had.

        Raises:
            OSError: if it cannot be written; the name has what it had.
        """
        temporary = self._folder / (name + _TEMPORARY)
        # One that a crash left may have a mode of its own, or be a link to somewhere else.
        temporary.unlink(missing_ok=True)
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
        try:
            with os.fdopen(file, "wb") as opened:
                opened.write(data)
                opened.flush()
                os.fsync(opened.fileno())
            temporary.replace(self._folder / name)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        self._sync()

    def rename(self, source: str, target: str) -> None:
        """Move what `source` has to `target`, in place of what that had; nothing without it.

        Raises:
            OSError: if it cannot be moved.
        """
        with contextlib.suppress(FileNotFoundError):
            (self._folder / source).replace(self._folder / target)
        self._sync()

    def remove(self, name: str) -> None:
        """Keep nothing under a name, whether there was something or not.

        Raises:
            OSError: if the file cannot be removed.
        """
        for path in (self._folder / name, self._folder / (name + _TEMPORARY)):
            path.unlink(missing_ok=True)
        self._sync()

    def _sync(self) -> None:
        # A new name is not durable before its folder is.
        folder = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
