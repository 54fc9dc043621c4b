"""Decoding and storing of updates, away from the event loop.

`check_inline` and `UploadSink` apply the same checks to a payload in one piece and to one that
arrives in chunks: length and digest, and what its format says. A plain payload is checked whole:
codec's canonical form, dimension, dtype and finiteness. Of a sealed one only the outside can be:
whose it is, of which round, and that every part has its place. A dense payload is checked as it
arrives; a compressed one is held, as far as it may be long, and checked when it is whole.
"""

import threading
from collections.abc import Iterable

import xxhash

from server.errors import (
    DigestMismatch,
    TruncatedStream,
    UpdateTooLarge,
)
from server.round.ports import Submission
from server.storage.blobs import PartWriter
from server.task.payload_format import PayloadFormat


def check_inline(submission: Submission, payload_format: PayloadFormat) -> None:
    """Check a payload that came in one message.

    Raises:
        ServiceError: the subclass that says what is wrong.
    """
    payload = submission.inline_payload or b""
    _check_length(len(payload), submission.payload_bytes)
    _check_digest(xxhash.xxh3_128_digest(payload), submission.digest)
    payload_format.check(submission, payload)


class UploadSink:
    """Checks and stores a payload chunk by chunk.

    Holds no more than one chunk of it, or what its check holds: the whole, if it is compressed.

    All but `check` block: they are for worker threads, and calls of several threads run one after
    the other. Nothing is visible in the store before `commit`, and `commit` refuses unless the
    whole payload is right.

    Args:
        submission: what the header declared.
        payload_format: what the payload must be.
        writer: where the bytes go.
    """

    def __init__(
        self, submission: Submission, *, payload_format: PayloadFormat, writer: PartWriter
    ) -> None:
        self._submission = submission
        self._writer = writer
        self._hash = xxhash.xxh3_128()
        self._check = payload_format.start(submission)
        self._received = 0
        # A cancelled call leaves its thread running: `abort` must not close the file under it.
        self._busy = threading.Lock()

    def feed(self, chunks: Iterable[bytes | memoryview]) -> None:
        """Take the next bytes: `check` and `write` them.

        Raises:
            ServiceError: as soon as a chunk is wrong.
            StoreUnavailable: if the store cannot take them.
        """
        with self._busy:
            for chunk in chunks:
                self.check(chunk)
                self._writer.write(chunk)

    def check(self, chunk: bytes | memoryview) -> None:
        """Check the bytes that follow those checked before; `write` or `commit` must take them too.

        Does no I/O, and is quick enough for the event loop where a chunk is one message.

        Raises:
            ServiceError: if the chunk is wrong.
        """
        self._received += len(chunk)
        if self._received > self._submission.payload_bytes:
            msg = f"more than the declared {self._submission.payload_bytes} bytes arrived"
            raise UpdateTooLarge(msg)
        self._check.feed(chunk)
        self._hash.update(chunk)

    def write(self, chunks: Iterable[bytes | memoryview]) -> None:
        """Store checked bytes.

        Raises:
            StoreUnavailable: if the store cannot take them.
        """
        with self._busy:
            for chunk in chunks:
                self._writer.write(chunk)

    def commit(self, rest: Iterable[bytes | memoryview] = ()) -> None:
        """Store the checked bytes that are left, and make the whole durable under its key.

        Raises:
            ServiceError: if the whole is not what was declared.
            StoreUnavailable: if the store cannot take it.
        """
        self.write(rest)
        with self._busy:
            _check_length(self._received, self._submission.payload_bytes)
            _check_digest(self._hash.digest(), self._submission.digest)
            self._check.finish()
            self._writer.commit()

    def abort(self, *, keep: bool) -> None:
        """Give up; with `keep`, what was received waits for a resumed upload."""
        with self._busy:
            self._writer.abort(keep=keep)


def _check_length(received: int, declared: int) -> None:
    if received < declared:
        msg = f"{received} of the declared {declared} bytes arrived"
        raise TruncatedStream(msg)
    if received > declared:
        msg = f"{received} bytes arrived, {declared} were declared"
        raise UpdateTooLarge(msg)


def _check_digest(actual: bytes, declared: bytes) -> None:
    if actual != declared:
        msg = f"the payload hashes to {actual.hex()}, {declared.hex()} was declared"
        raise DigestMismatch(msg)
