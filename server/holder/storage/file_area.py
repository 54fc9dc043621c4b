"""Files of one kind in one folder, each complete or absent."""

import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from server.errors import StoreUnavailable

FOLDER_MODE: Final = 0o700
FILE_MODE: Final = 0o600

_TEMPORARY: Final = ".tmp"


class FileArea:
    """Files of one kind in one folder, each complete or absent."""

    def __init__(self, folder: Path, *, fsync: bool) -> None:
        folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
        self._folder = folder
        self._fsync = fsync

    def create(self, name: str = "") -> "NewFile":
        """Begin a file; without a name it gets a random one."""
        return NewFile(self._folder, name or secrets.token_hex(16), fsync=self._fsync)

    def path(self, name: str) -> Path:
        """Tell where the file of that name is."""
        return self._folder / name

    def delete(self, name: str) -> None:
        """Delete a file if it is there."""
        (self._folder / name).unlink(missing_ok=True)

    def sweep(self, keep: set[str]) -> None:
        """Delete everything that a crash left over: all but the names to keep."""
        for path in self._folder.iterdir():
            if path.name not in keep:
                path.unlink(missing_ok=True)


class NewFile:
    """A file being written; it appears under its name when `finish` returns.

    A context: left without `finish`, nothing stays behind.
    """

    def __init__(self, folder: Path, name: str, *, fsync: bool) -> None:
        self.name = name
        self._folder = folder
        self._fsync = fsync
        self._temporary = folder / f"{name}.{secrets.token_hex(4)}{_TEMPORARY}"
        try:
            fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        except OSError as error:
            raise unavailable("create a file", error) from error
        self._file = os.fdopen(fd, "wb", buffering=0)
        self._is_finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.discard()

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise unavailable("write a file", error) from error

    def finish(self) -> None:
        """Give the file its name; with fsync it survives a loss of power from now on."""
        try:
            if self._fsync:
                os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.replace(self._folder / self.name)
            if self._fsync:
                _sync_folder(self._folder)
        except OSError as error:
            raise unavailable("finish a file", error) from error
        self._is_finished = True

    def discard(self) -> None:
        """Close and delete the file unless it is finished."""
        if not self._is_finished:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


def unavailable(what: str, error: Exception) -> StoreUnavailable:
    """Tell a caller that the folder failed; the details are not its business."""
    return StoreUnavailable(f"the holder cannot {what}: {type(error).__name__}")


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
