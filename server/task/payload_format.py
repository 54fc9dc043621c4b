"""What the payloads of a round must be, and what checks that they are."""

from dataclasses import dataclass
from typing import Final, Protocol

from security.errors import MalformedMessageError, SharedRoundError
from security.shared_round.keys.signing import read_header
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.bundle import MAX_PREFIX_BYTES, check_structure, parse_prefix
from server import errors
from server.errors import (
    InvalidInput,
    WrongModelVersion,
)
from server.round.ports import Submission
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

    def check(self, submission: Submission, payload: bytes) -> None:
        """Check a payload that is there as a whole.

        Raises:
            ServiceError: if it is not what the round takes.
        """

    def start(self, submission: Submission) -> PayloadCheck:
        """Start the check of a payload that comes in parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseFormat:
    """Encoded updates in the clear, of `dim` elements."""

    dim: int

    @property
    def is_quick(self) -> bool:
        """True: a payload of one message is checked in far less than a millisecond."""
        return True

    def check(self, submission: Submission, payload: bytes) -> None:
        """Check a whole payload; quicker than in parts."""
        del submission
        try:
            codec.decode(payload, dim=self.dim)
        except codec.CodecError as error:
            raise _refusal(error) from error

    def start(self, submission: Submission) -> PayloadCheck:
        """Start the check of float32 numbers as they come."""
        del submission
        return _CodecCheck(codec.DenseValidator(dim=self.dim))


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedFormat:
    """Compressed updates in the clear, in `num_values` numbers; in the codec's one form."""

    codec: UpdateCodec
    num_values: int

    @property
    def is_quick(self) -> bool:
        """Whether decoding so many numbers is quick enough for the event loop."""
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
class SealedFormat:
    """Sealed bundles of one shared round; with `is_direct`, their prefixes alone."""

    params: RoundParameters
    is_direct: bool = False

    @property
    def is_quick(self) -> bool:
        """True: only the structure and the hashes are looked at, nothing is opened."""
        return True

    def check(self, submission: Submission, payload: bytes) -> None:
        """Check a whole payload."""
        check = self.start(submission)
        check.feed(payload)
        check.finish()

    def start(self, submission: Submission) -> PayloadCheck:
        """Start the check of a bundle of sealed shares as it comes."""
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


def _refusal(error: codec.CodecError) -> InvalidInput:
    known = next((kind for kind in type(error).__mro__ if kind in _REFUSALS), None)
    return (errors.MalformedUpdate if known is None else _REFUSALS[known])(str(error))
