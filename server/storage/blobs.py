"""The blob store: models and large payloads, as files or as objects.

A key is a relative path such as `tasks/keyboard/rounds/7/updates/ab12`. A blob appears under its
key whole or not at all, and is never changed in place; writing a key again replaces it. When `put`
or `commit` returns, the blob survives what the store's `Durability` says. An object store is as
durable as its provider makes it, in both modes.

An upload that was cut off may leave a *part*: the bytes received so far, invisible under the key. A
later attempt reads the part and goes on. Only the file backend keeps parts. A part may hold wrong
bytes after a power loss, so whoever resumes must check a digest over the whole payload.
"""

import asyncio
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, ParamSpec, Protocol, TypeVar

from server.config.durability import Durability
from server.storage.blob_files import FileBlobs
from server.storage.blob_objects import ObjectBlobs

COPY_CHUNK_BYTES: Final = 1 << 20
MAX_KEY_CHARS: Final = 900  # object stores allow 1024 bytes, of which the root takes some
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._-]{1,180}")  # a file system allows 255, with suffixes
_PART: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_RESERVED_SUFFIXES: Final = (".parts", ".tmp")
_FILE_URL: Final = re.compile(r"(?:file|local)://(?P<path>.*)", re.DOTALL)

_P = ParamSpec("_P")
_T = TypeVar("_T")


class BlobKeyError(ValueError):
    """The key or part name is not one the store can hold."""


class PartWriter(Protocol):
    """One upload in progress. Synchronous and not thread-safe: for one worker at a time.

    A writer that is neither committed nor aborted leaves what a crash would leave.
    """

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            StoreUnavailable: if the store cannot take them.
        """

    def commit(self) -> None:
        """Make the bytes written the blob, atomically and durably. At most once.

        Raises:
            StoreUnavailable: if it is not known to be durable; the key is absent or whole.
        """

    def abort(self, *, keep: bool) -> None:
        """Give up; with `keep`, leave the part for a later attempt. Nothing after `commit`."""


class BlobBackend(Protocol):
    """What `BlobStore` asks of files and of objects; synchronous, thread-safe."""

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Store a blob atomically, as durably as the backend was told; replaces one that is there.

        Raises:
            StoreUnavailable: if it is not known to be stored; the key has the old blob or the new.
        """

    def get(self, key: str) -> bytes:
        """Return the whole blob.

        Raises:
            BlobNotFound: if it is not there.
        """

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on, fewer where the blob ends before.

        Raises:
            BlobNotFound: if it is not there.
        """

    def size(self, key: str) -> int | None:
        """Return the blob's size in bytes; None: it is not there."""

    def delete(self, key: str) -> None:
        """Remove the blob and its parts, if there are any."""

    def delete_prefix(self, prefix: str) -> int:
        """Remove all in the folder `prefix`, parts included; return the number of blobs."""

    def list(self, prefix: str) -> list[str]:
        """Return the keys in the folder `prefix`, at any depth, sorted; "" is the whole store."""

    def local_path(self, key: str) -> Path | None:
        """Return the file that holds the blob, there or not; None: blobs are no files."""

    def open_part(self, key: str, part: str) -> PartWriter:
        """Start an upload that `commit` makes the blob `key`; does no I/O yet."""

    def stored_part(self, key: str) -> tuple[str, int] | None:
        """Return name and bytes of an unfinished upload's longest part; None: there is none."""

    def iter_part(self, key: str, part: str, length: int, chunk_bytes: int) -> Iterator[bytes]:
        """Yield the first `length` bytes of a part, at most `chunk_bytes` at once.

        Raises:
            BlobNotFound: while iterating, if the part is gone or shorter.
        """

    def delete_part(self, key: str, part: str) -> None:
        """Remove a part, if it is there."""


class BlobStore:
    """Blobs under a URL. The coroutines run their blocking work in a bounded thread pool.

    Every method may be repeated. Methods raise `BlobKeyError` for a key that cannot be,
    `BlobNotFound` for a blob that is not there, `StoreUnavailable` when the store fails. Several
    processes may share one URL. Close it when done.

    Args:
        url: `file:///path` or a plain path; else an fsspec URL: `s3://bucket/prefix`,
            `gs://bucket/prefix`, `memory://name`. Credentials come from the environment, as the
            provider's own tools read them.
        durability: what a written blob survives. Only files can be asked for less than all.
        num_threads: blocking operations at the same time, >= 1.
    """

    def __init__(self, url: str, *, durability: Durability, num_threads: int = 8) -> None:
        self._backend = _open_backend(url, durability)
        self._pool = ThreadPoolExecutor(max_workers=num_threads, thread_name_prefix="blobs")

    async def put(self, key: str, data: bytes | memoryview) -> None:
        """Store a blob atomically and durably; replaces one that is there."""
        await self._run(self._backend.put, _checked(key), data)

    async def get(self, key: str) -> bytes:
        """Return the whole blob."""
        return await self._run(self._backend.get, _checked(key))

    async def read_range(self, key: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on, fewer where the blob ends before."""
        if offset < 0 or length < 0:
            msg = f"offset={offset} and length={length} must be >= 0"
            raise ValueError(msg)
        return await self._run(self._backend.read_range, _checked(key), offset, length)

    async def size(self, key: str) -> int | None:
        """Return the blob's size in bytes, None if it is not there."""
        return await self._run(self._backend.size, _checked(key))

    async def delete(self, key: str) -> None:
        """Remove the blob and its parts, if there are any."""
        await self._run(self._backend.delete, _checked(key))

    async def delete_prefix(self, prefix: str) -> int:
        """Remove everything in the folder `prefix`, parts included; return the number of blobs.

        A blob written meanwhile may stay.
        """
        return await self._run(self._backend.delete_prefix, _checked(prefix.rstrip("/")))

    async def list(self, prefix: str) -> list[str]:
        """Return the keys in the folder `prefix`, at any depth, sorted; "" is the whole store."""
        folder = prefix.rstrip("/")
        return await self._run(self._backend.list, _checked(folder) if folder else "")

    def local_path(self, key: str) -> Path | None:
        """Return the file that holds the blob, for memory maps; None: not a file backend.

        Does no I/O: the file exists only if the blob does. The mapping stays valid when the blob is
        replaced or deleted.
        """
        return self._backend.local_path(_checked(key))

    def open_part(self, key: str, *, part: str) -> PartWriter:
        """Start an upload. Does no I/O until the first `write` or `commit`.

        Args:
            key: where `commit` puts the blob.
            part: 1 to 64 characters of [A-Za-z0-9_-], new for every attempt.
        """
        return self._backend.open_part(_checked(key), _checked_part(part))

    async def stored_part(self, key: str) -> tuple[str, int] | None:
        """Return name and size of the longest part of an unfinished upload, None if there is none.

        The attempt that writes it may still be running.
        """
        return await self._run(self._backend.stored_part, _checked(key))

    def iter_part(
        self, key: str, *, part: str, length: int, chunk_bytes: int = COPY_CHUNK_BYTES
    ) -> Iterator[bytes]:
        """Yield the first `length` bytes of a part; blocking, for a worker thread.

        Raises:
            BlobNotFound: while iterating, if the part is gone or shorter.
        """
        return self._backend.iter_part(_checked(key), _checked_part(part), length, chunk_bytes)

    async def delete_part(self, key: str, *, part: str) -> None:
        """Remove a part, if it is there."""
        await self._run(self._backend.delete_part, _checked(key), _checked_part(part))

    def close(self) -> None:
        """Wait for the operations under way and stop the threads."""
        self._pool.shutdown(wait=True)

    async def _run(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: work(*args, **kwargs))


def blob_folder(url: str) -> Path | None:
    """Return the folder that a URL names; None: it names no files."""
    file_url = _FILE_URL.fullmatch(url)
    if file_url or "://" not in url:
        return Path(file_url["path"] if file_url else url).absolute()
    return None


def _open_backend(url: str, durability: Durability) -> BlobBackend:
    if not url:
        msg = "the blob store's URL must not be empty"
        raise ValueError(msg)
    root = blob_folder(url)
    if root is not None:
        return FileBlobs(root, fsync=durability is Durability.MACHINE)
    return ObjectBlobs(url)


def _checked(key: str) -> str:
    segments = key.split("/")
    if (
        len(key) > MAX_KEY_CHARS
        or not all(_SEGMENT.fullmatch(segment) for segment in segments)
        or any(segment in {".", ".."} for segment in segments)
        or any(segment.endswith(_RESERVED_SUFFIXES) for segment in segments)
    ):
        msg = (
            f"key={key[:100]!r} must be a relative path of at most {MAX_KEY_CHARS} characters "
            f"[A-Za-z0-9._-], without '..', no segment ending in {' or '.join(_RESERVED_SUFFIXES)}"
        )
        raise BlobKeyError(msg)
    return key


def _checked_part(part: str) -> str:
    if not _PART.fullmatch(part):
        msg = f"part={part[:100]!r} must be 1 to 64 characters of [A-Za-z0-9_-]"
        raise BlobKeyError(msg)
    return part
