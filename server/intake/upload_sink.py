"""Decoding and storing of updates, away from the event loop.

`check_inline` and `UploadSink` apply the same checks to a payload in one piece and to one that
arrives in chunks: length and digest, and what its format says. A plain payload is checked whole:
codec's canonical form, dimension, dtype and finiteness. Of a sealed one only the outside can be:
whose it is, of which round, and that every part has its place. A dense payload is checked as it
arrives; a compressed one is held, as far as it may be long, and checked when it is whole.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

import xxhash

from security.errors import MalformedMessageError, SharedRoundError
from security.shared_round.keys.signing import read_header
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.bundle import MAX_PREFIX_BYTES, check_structure, parse_prefix
from server import errors
from server.errors import (
    DigestMismatch,
    InvalidInput,
    TruncatedStream,
    UpdateTooLarge,
    WrongModelVersion,
)
from server.round.ports import Submission
from server.storage.blobs import PartWriter
from server.wire.status import refusal
from updates import codec
from updates.update_codec import UpdateCodec, Validator

QUICK_VALUES: Final = 4096
"""Numbers of a compressed update that are decoded in well under a millisecond."""

_REFUSALS: dict[type[codec.CodecError], type[InvalidInput]] = {
    codec.MalformedUpdateError: errors.MalformedUpdate,
    codec.NonCanonicalUpdateError: errors.NonCanonicalUpdate,
    codec.WrongShapeError: errors.WrongShape,
    codec.WrongDtypeError: errors.WrongDtype,
    codec.NonFiniteUpdateError: errors.NonFiniteUpdate,
}


class PayloadCheck(Protocol):
    """Checks one payload as it arrives."""

    def feed(self, chunk: bytes | memoryview) -> None:
        """Check the next bytes; quick enough for the event loop.

        Raises:
            ServiceError: as soon as they are wrong.
        """

    def finish(self) -> None:
        """Check that the payload is complete; called in a worker thread for what came in parts.

        Raises:
            ServiceError: if it is not.
        """


class PayloadFormat(Protocol):
    """What the payloads of a round must be."""

    @property
    def is_quick(self) -> bool:
        """Whether a payload that came in one message may be checked on the event loop."""

    def check(self, submission: Submission, payload: bytes) -> None: ...

    def start(self, submission: Submission) -> PayloadCheck: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DensePayload:
    """Encoded updates in the clear, of `dim` elements."""

    dim: int

    @property
    def is_quick(self) -> bool:
        return True

    def check(self, submission: Submission, payload: bytes) -> None:
        """Check a whole payload; quicker than in parts."""
        del submission
        try:
            codec.decode(payload, dim=self.dim)
        except codec.CodecError as error:
            raise _refusal(error) from error

    def start(self, submission: Submission) -> PayloadCheck:
        del submission
        return _CodecCheck(codec.DenseValidator(dim=self.dim))


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedPayload:
    """Compressed updates in the clear, in `num_values` numbers; in the codec's one form."""

    codec: UpdateCodec
    num_values: int

    @property
    def is_quick(self) -> bool:
        return self.num_values <= QUICK_VALUES

    def check(self, submission: Submission, payload: bytes) -> None:
        """Check a whole payload."""
        del submission
        try:
            self.codec.decode(payload)
        except codec.CodecError as error:
            raise _refusal(error) from error

    def start(self, submission: Submission) -> PayloadCheck:
        """Check in parts: `finish` decodes, so it belongs into a worker thread."""
        del submission
        return _CodecCheck(self.codec.validator())


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedPayload:
    """Sealed bundles of one shared round; with `is_direct`, their prefixes alone."""

    params: RoundParameters
    is_direct: bool = False

    @property
    def is_quick(self) -> bool:
        return True

    def check(self, submission: Submission, payload: bytes) -> None:
        """Check a whole payload."""
        check = self.start(submission)
        check.feed(payload)
        check.finish()

    def start(self, submission: Submission) -> PayloadCheck:
        return _SealedCheck(self.params, submission, is_direct=self.is_direct)


class _CodecCheck:
    def __init__(self, validator: Validator) -> None:
        self._validator = validator

    def feed(self, chunk: bytes | memoryview) -> None:
        try:
            self._validator.feed(chunk)
        except codec.CodecError as error:
            raise _refusal(error) from error

    def finish(self) -> None:
        try:
            self._validator.finish()
        except codec.CodecError as error:
            raise _refusal(error) from error


class _SealedCheck:
    """Holds a bundle's prefix until it is complete; what follows is sealed."""

    def __init__(self, params: RoundParameters, submission: Submission, *, is_direct: bool) -> None:
        self._params = params
        self._has_bodies = not is_direct
        self._submission = submission
        self._head = bytearray()
        self._is_checked = False

    def feed(self, chunk: bytes | memoryview) -> None:
        if self._is_checked:
            return
        self._head += chunk[: MAX_PREFIX_BYTES - len(self._head)]
        # The prefix is whole in the first message or two; a device that sends byte by byte is
        # heard out rather than parsed at every byte.
        if len(self._head) < min(MAX_PREFIX_BYTES, self._submission.payload_bytes):
            return
        self._check()

    def finish(self) -> None:
        if not self._is_checked:
            self._check()

    def _check(self) -> None:
        submission, self._is_checked = self._submission, True
        try:
            prefix, prefix_bytes = parse_prefix(bytes(self._head))
            check_structure(
                self._params,
                prefix,
                prefix_bytes=prefix_bytes,
                total_bytes=submission.payload_bytes,
                device_id=submission.device_id,
                has_bodies=self._has_bodies,
            )
            signed_version = read_header(prefix.header).model_version
        except MalformedMessageError as error:
            raise errors.MalformedUpdate(str(error)) from error
        except SharedRoundError as error:
            raise refusal(error.reason, str(error)) from error
        if signed_version != submission.model_version:
            msg = f"model_version={submission.model_version} is {signed_version} in the bundle"
            raise WrongModelVersion(msg)
        self._head.clear()


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
        """`check` and `write` the next bytes.

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


def _refusal(error: codec.CodecError) -> InvalidInput:
    known = next((kind for kind in type(error).__mro__ if kind in _REFUSALS), None)
    return (errors.MalformedUpdate if known is None else _REFUSALS[known])(str(error))
