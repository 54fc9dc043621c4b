"""Blobs as files in a folder, each written beside its place and then renamed into it.

Layout under the root:

    <key>                 a blob
    <key>.parts/<part>    bytes of an unfinished upload
    <key>.<random>.tmp    a `put` or `delete_prefix` in progress, or cut off by a crash

Folders and files are readable by the owner only. Hard links, locks and rename across folders are
not needed, so any local POSIX file system will do.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from server.errors import StoreUnavailable
from server.round.ports import BlobNotFound

PARTS_SUFFIX: Final = ".parts"
TEMPORARY_SUFFIX: Final = ".tmp"
_FOLDER_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
# Another process may remove the folder between our making and using it; then we make it again.
_ATTEMPTS: Final = 10


class FileBlobs:
    """Files under `root`; with `fsync`, a blob reaches the disk before a write returns."""

    def __init__(self, root: Path, *, fsync: bool) -> None:
        self._root = root
        self._fsync = fsync

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write beside the file and rename over it; with `fsync`, file and folders are synced."""
        with _reported("write"):
            _write_file(self._path(key), data, root=self._root, fsync=self._fsync)

    def get(self, key: str) -> bytes:
        """Read the whole file."""
        with _reported("read"), _found(key):
            return self._path(key).read_bytes()

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """Read at most `length` bytes from `offset` on."""
        with _reported("read"), _found(key), self._path(key).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def size(self, key: str) -> int | None:
        """Return the file's size in bytes; None: there is none."""
        with _reported("read"):
            try:
                return self._path(key).stat().st_size
            except FileNotFoundError:
                return None

    def delete(self, key: str) -> None:
        """Unlink the file, then the folder of its parts."""
        path = self._path(key)
        with _reported("delete"):
            path.unlink(missing_ok=True)
            _remove_tree(_parts_folder(path))
            self._sync_folder(path.parent)

    def delete_prefix(self, prefix: str) -> int:
        """Remove a folder, and what earlier removals left of it; return the number of blobs."""
        folder = self._path(prefix)
        count = 0
        with _reported("delete"):
            # Renamed first, the folder is gone at once, and late writers cannot add to it.
            with contextlib.suppress(FileNotFoundError):
                folder.rename(_temporary_name(folder))
            for doomed in _temporaries_of(folder):
                count += sum(1 for _ in _blobs_in(doomed))
                _remove_tree(doomed)
            self._sync_folder(folder.parent)
        return count

    def list(self, prefix: str) -> list[str]:
        """Walk the folder; return the keys in it, without parts and temporary files, sorted."""
        with _reported("list"):
            paths = list(_blobs_in(self._path(prefix)))
        return sorted(path.relative_to(self._root).as_posix() for path in paths)

    def local_path(self, key: str) -> Path:
        """Return the path that the blob has, or would have."""
        return self._path(key)

    def open_part(self, key: str, part: str) -> "FilePart":
        """Start a part; its file is made by the first write, or by `commit`."""
        return FilePart(self._path(key), part, root=self._root, fsync=self._fsync)

    def stored_part(self, key: str) -> tuple[str, int] | None:
        """Return name and bytes of the longest part that is not empty; None: there is none."""
        with _reported("read"):
            try:
                with os.scandir(_parts_folder(self._path(key))) as entries:
                    sizes = [(_size_or_zero(entry), entry.name) for entry in entries]
            except FileNotFoundError:
                return None
        size, part = max(sizes, default=(0, ""))
        return (part, size) if size else None

    def iter_part(self, key: str, part: str, length: int, chunk_bytes: int) -> Iterator[bytes]:
        """Open a part and read it; the file stays readable when it is committed or deleted."""
        with _reported("read"), _found(key):
            file = (_parts_folder(self._path(key)) / part).open("rb")
        with file:
            left = length
            while left:
                with _reported("read"):
                    chunk = file.read(min(left, chunk_bytes))
                if not chunk:
                    msg = f"part {part} of {key} ends {left} bytes early"
                    raise BlobNotFound(msg)
                left -= len(chunk)
                yield chunk

    def delete_part(self, key: str, part: str) -> None:
        """Unlink the part, and its folder where that was the last one."""
        folder = _parts_folder(self._path(key))
        with _reported("delete"):
            (folder / part).unlink(missing_ok=True)
            _remove_if_empty(folder)

    def _path(self, key: str) -> Path:
        return self._root / key

    def _sync_folder(self, folder: Path) -> None:
        if self._fsync:
            with contextlib.suppress(FileNotFoundError):
                _sync_folder(folder)


class FilePart:
    """An upload written to its own file; see `blobs.PartWriter`."""

    def __init__(self, target: Path, part: str, *, root: Path, fsync: bool) -> None:
        self._target = target
        self._path = _parts_folder(target) / part
        self._root = root
        self._fsync = fsync
        self._descriptor: int | None = None
        self._finished = False
        self._bytes_written = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        with _reported("write"):
            _write_all(self._open(), data)
        self._bytes_written += memoryview(data).nbytes

    def commit(self) -> None:
        """Rename the part to its key, after it is on disk where that is asked for."""
        with _reported("write"):
            descriptor = self._open()
            if self._fsync:
                os.fsync(descriptor)
            self._path.replace(self._target)
            self._close()
            _remove_if_empty(self._path.parent)
            if self._fsync:
                _sync_folder(self._target.parent)

    def abort(self, *, keep: bool) -> None:
        """Give up; an empty part is never kept."""
        if self._finished:
            return
        self._close()
        if not keep or not self._bytes_written:
            with _reported("delete"):
                self._path.unlink(missing_ok=True)
                _remove_if_empty(self._path.parent)

    def _open(self) -> int:
        if self._finished:
            msg = "the part is already committed or aborted"
            raise ValueError(msg)
        if self._descriptor is None:
            self._descriptor = _create(self._path, root=self._root, fsync=self._fsync)
        return self._descriptor

    def _close(self) -> None:
        self._finished = True
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextlib.contextmanager
def _reported(action: str) -> Iterator[None]:
    """Turn I/O errors into the service's own; peers see the reason, not the path."""
    try:
        yield
    except OSError as error:
        msg = f"the blob store cannot {action}: {error.strerror or 'I/O error'}"
        raise StoreUnavailable(msg) from error


@contextlib.contextmanager
def _found(key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise BlobNotFound(key) from error


def _write_file(target: Path, data: bytes | memoryview, *, root: Path, fsync: bool) -> None:
    temporary = _temporary_name(target)
    descriptor = _create(temporary, root=root, fsync=fsync)
    try:
        try:
            _write_all(descriptor, data)
            if fsync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if fsync:
        _sync_folder(target.parent)


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    left = memoryview(data).cast("B")
    while left:
        left = left[os.write(descriptor, left) :]


def _create(path: Path, *, root: Path, fsync: bool) -> int:
    """Open a new file, making the folders it needs."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):
            _make_folders(path.parent, root=root, fsync=fsync)
            return os.open(path, flags, _FILE_MODE)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _make_folders(folder: Path, *, root: Path, fsync: bool) -> None:
    """Make the missing folders from the root down; each new name is synced in its parent."""
    if folder.is_dir():
        return
    if folder == root:
        folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    else:
        _make_folders(folder.parent, root=root, fsync=fsync)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=_FOLDER_MODE)
    if fsync:
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f"{path.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")


def _temporaries_of(path: Path) -> list[Path]:
    """Find what `_temporary_name` named, also in a process that died meanwhile."""
    name = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}" + re.escape(TEMPORARY_SUFFIX))
    try:
        return [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)]
    except FileNotFoundError:
        return []


def _blobs_in(folder: Path) -> Iterator[Path]:
    hidden = (PARTS_SUFFIX, TEMPORARY_SUFFIX)
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.endswith(hidden)]
        yield from (Path(path, name) for name in files if not name.endswith(hidden))


def _parts_folder(path: Path) -> Path:
    return path.with_name(path.name + PARTS_SUFFIX)


def _size_or_zero(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return 0


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _remove_tree(folder: Path) -> None:
    """Remove a folder that others may be removing from or adding to at the same time."""
    for attempt in range(_ATTEMPTS):
        try:
            shutil.rmtree(folder)
        except OSError as error:
            expected = error.errno in {errno.ENOENT, errno.ENOTEMPTY}
            if not expected or attempt == _ATTEMPTS - 1:
                raise
        if not folder.exists():
            return
