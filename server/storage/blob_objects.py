"""Blobs as objects: S3, Google Cloud Storage, or this process's memory, through fsspec.

Object stores publish a whole object at once and durably, so nothing is renamed and no part can be
resumed.
"""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import fsspec

from server.errors import StoreUnavailable
from server.round.ports import BlobNotFound

SINGLE_REQUEST_BYTES: Final = 8 << 20  # larger uploads go in several requests of this size
_MEMORY_PROTOCOL: Final = "memory"
# fsspec's memory files share one read position between all who open them.
_MEMORY_LOCK: Final = threading.RLock()

# fsspec and its drivers are untyped.
FileSystem = Any


class ObjectBlobs:
    """Objects under an fsspec URL."""

    def __init__(self, url: str) -> None:
        # Other processes write to the same place, so what a listing once said proves nothing.
        self._fs: FileSystem
        self._fs, root = fsspec.core.url_to_fs(
            url, skip_instance_cache=True, use_listings_cache=False
        )
        self._root = root.rstrip("/")
        self._in_memory = self._fs.protocol == _MEMORY_PROTOCOL

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Upload the object in one call; object stores replace atomically."""
        with self._calling("write"):
            self._fs.pipe_file(self._path(key), bytes(data))

    def get(self, key: str) -> bytes:
        """Download the whole object."""
        with self._calling("read", key):
            return bytes(self._fs.cat_file(self._path(key)))

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """Download at most `length` bytes from `offset` on."""
        # A range that starts at or after the end is an error to S3: ask for the size first.
        size = self.size(key)
        if size is None:
            raise BlobNotFound(key)
        end = min(offset + length, size)
        if offset >= end:
            return b""
        with self._calling("read", key):
            return bytes(self._fs.cat_file(self._path(key), start=offset, end=end))

    def size(self, key: str) -> int | None:
        """Return the object's size in bytes; None: there is none, or it is a folder."""
        try:
            with self._calling("read", key):
                info = self._fs.info(self._path(key))
        except BlobNotFound:
            return None
        return int(info["size"]) if info["type"] == "file" else None

    def delete(self, key: str) -> None:
        """Remove the object, if it is there."""
        with contextlib.suppress(BlobNotFound), self._calling("delete", key):
            self._fs.rm_file(self._path(key))

    def delete_prefix(self, prefix: str) -> int:
        """Remove the objects under a prefix, those listed now; return how many."""
        keys = self.list(prefix)
        if keys:
            with self._calling("delete"):
                self._fs.rm([self._path(key) for key in keys])
        return len(keys)

    def list(self, prefix: str) -> list[str]:
        """List the keys under a prefix, sorted; a key that only begins like it is left out."""
        folder = self._path(prefix) if prefix else self._root
        with self._calling("list"):
            paths = [str(path) for path in self._fs.find(folder)]
        inside = folder + "/"
        return sorted(path[len(self._root) + 1 :] for path in paths if path.startswith(inside))

    def local_path(self, key: str) -> Path | None:  # noqa: ARG002  # the backend's interface
        """Return None: objects are no files."""
        return None

    def open_part(self, key: str, part: str) -> "ObjectPart":  # noqa: ARG002  # likewise
        """Start an upload; a small one is held in memory until `commit`."""
        return ObjectPart(self, key)

    def stored_part(self, key: str) -> tuple[str, int] | None:  # noqa: ARG002  # likewise
        """Return None: an upload that broke off leaves nothing."""
        return None

    def iter_part(self, key: str, part: str, length: int, chunk_bytes: int) -> Iterator[bytes]:
        """Raise BlobNotFound: no upload leaves a part here."""
        del length, chunk_bytes
        msg = f"part {part} of {key}: object stores keep no parts"
        raise BlobNotFound(msg)

    def delete_part(self, key: str, part: str) -> None:
        """Do nothing: objects have no parts."""

    def open_upload(self, key: str) -> FileSystem | None:
        """Start an upload in several requests, None where there is no such thing.

        Without `autocommit` a file object that is dropped or closed publishes nothing.
        """
        if self._in_memory:
            return None
        with self._calling("write"):
            return self._fs.open(
                self._path(key), "wb", block_size=SINGLE_REQUEST_BYTES, autocommit=False
            )

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    @contextlib.contextmanager
    def _calling(self, action: str, key: str | None = None) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self._in_memory:
                stack.enter_context(_MEMORY_LOCK)
            with reported(action, key):
                yield


@contextlib.contextmanager
def reported(action: str, key: str | None = None) -> Iterator[None]:
    """Turn a driver's errors into the service's own; absence of `key` is `BlobNotFound`."""
    try:
        yield
    except FileNotFoundError as error:
        if key is not None:
            raise BlobNotFound(key) from error
        msg = f"the blob store cannot {action}: the bucket does not exist"
        raise StoreUnavailable(msg) from error
    # Each driver has an error tree of its own (botocore, aiohttp, google.auth) and may be absent.
    except Exception as error:
        msg = f"the blob store cannot {action}: {type(error).__name__}"
        raise StoreUnavailable(msg) from error


class ObjectPart:
    """An upload to an object: kept in memory while small, then sent as it comes.

    Holds at most two requests' worth of bytes in memory (all of them for `memory://`).
    """

    def __init__(self, blobs: ObjectBlobs, key: str) -> None:
        self._blobs = blobs
        self._key = key
        self._buffer = bytearray()
        self._upload: FileSystem | None = None
        self._finished = False

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self._require_open()
        self._buffer += data
        if len(self._buffer) >= SINGLE_REQUEST_BYTES:
            self._send()

    def commit(self) -> None:
        """Publish the object."""
        self._require_open()
        if self._upload is None:
            self._blobs.put(self._key, memoryview(self._buffer))
        else:
            self._send()
            with reported("write"):
                self._upload.close()
                self._upload.commit()
        self._finished = True
        self._buffer = bytearray()

    def abort(self, *, keep: bool) -> None:  # noqa: ARG002  # nothing can be kept
        """Give up; requests already sent are discarded."""
        if self._finished:
            return
        self._finished = True
        self._buffer = bytearray()
        if self._upload is not None:
            with reported("delete"):
                self._upload.discard()
            # A discarded file must not be flushed when it is collected.
            self._upload.closed = True

    def _send(self) -> None:
        if self._upload is None:
            self._upload = self._blobs.open_upload(self._key)
        if self._upload is not None:
            with reported("write"):
                self._upload.write(self._buffer)
            self._buffer = bytearray()

    def _require_open(self) -> None:
        if self._finished:
            msg = "the part is already committed or aborted"
            raise ValueError(msg)
