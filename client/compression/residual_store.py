"""What a device did not send of its updates, kept in two phases.

Before an update is sent, what remains of it is written as pending, with the name of its submission.
Once the server has taken the update, pending becomes current: one rename. Where the server refused
it, pending is dropped and current stays. So at every moment there is one of

    current                 the last update that was sent is settled
    current and pending     nobody here knows whether the pending one was taken: the server does

and whoever asks the server before the next update neither counts anything twice nor loses it.

A kept residual is the submission's name as JSON, between its length and a checksum, and the
residual as `updates.error_feedback` writes it:

    offset      size  field
    0           4     length n of the name, unsigned, little-endian
    4           n     task, round, submission_id, payload_digest, JSON
    4 + n       8     XXH3-64 of all that, big-endian
    12 + n            the residual
"""

import hashlib
import json
import struct
import threading
from typing import Final

import xxhash

from client.errors import ClientConfigError
from client.state.private_files import PrivateMemory, PrivateStore
from client.transport.messages import SubmissionKey
from updates import error_feedback
from updates.error_feedback import Residual
from updates.errors import CompressionError

_LENGTH: Final = struct.Struct("<I")
_MAX_NAME_BYTES: Final = 4096
_DIGEST_BYTES: Final = 8
_OWNER_LABEL: Final = b"fedagg residual v1"


class ResidualStore:
    """Keeps one device's residual of one task. For any thread.

    What is damaged, or cannot be read, is removed, pending with it: the device goes on without.
    What cannot be written is kept in memory from then on. `notices` tells of both.
    """

    def __init__(self, files: PrivateStore, *, task: str, device_id: str) -> None:
        """Prepare the store.

        Args:
            files: where it is kept.
            task: learning task.
            device_id: the device; several may share a folder.
        """
        self._files = files
        self._task = task
        self._device_id = device_id
        self._current = f"residual-{task}.{device_id}"
        # No device id holds a tilde, so that no device's files are named like those of another.
        self._pending = f"{self._current}~pending"
        names = b"\0".join((_OWNER_LABEL, task.encode(), device_id.encode()))
        self._owner = hashlib.sha256(names).digest()
        self._lock = threading.RLock()
        self._notices: list[str] = []

    def notices(self) -> list[str]:
        """Return what went wrong since the last call, in words."""
        with self._lock:
            notices, self._notices = self._notices, []
        return notices

    def pending(self) -> SubmissionKey | None:
        """Return the submission that is to be settled; None: there is none."""
        with self._lock:
            data = self._read(self._pending)
            if data is None:
                return None
            try:
                key, _ = self._parsed(data)
            except CompressionError as error:
                self.reset(f"the pending residual is damaged: {error}")
                return None
            return key

    def current(self, *, dim: int) -> Residual | None:
        """Return what is kept of all settled updates; None: nothing of a model of that size."""
        with self._lock:
            data = self._read(self._current)
            if data is None:
                return None
            try:
                _, body = self._parsed(data)
                return error_feedback.from_bytes(body, owner=self._owner, dim=dim)
            except CompressionError as error:
                self.reset(f"the residual is not used: {error}")
                return None

    def begin(self, key: SubmissionKey, residual: Residual) -> None:
        """Write what remains of an update that is sent next.

        Args:
            key: names the submission.
            residual: what remains if the server takes it.

        Raises:
            ClientConfigError: if neither this can be written nor the old residual be removed.
        """
        data = _framed(key) + error_feedback.to_bytes(residual, owner=self._owner)
        with self._lock:
            try:
                self._files.write(self._pending, data)
            except OSError as error:
                self.reset(f"the residual cannot be written: {error}")
                self._files = PrivateMemory()
                self._files.write(self._pending, data)

    def commit(self) -> None:
        """Make pending current, if there is one: the server has taken the update."""
        with self._lock:
            try:
                self._files.rename(self._pending, self._current)
            except OSError as error:
                self.reset(f"the residual cannot be written: {error}")

    def drop(self) -> None:
        """Forget pending: the server has not taken the update, and never will."""
        with self._lock:
            try:
                self._files.remove(self._pending)
            except OSError as error:
                self.reset(f"the residual cannot be written: {error}")

    def forget(self) -> None:
        """Remove everything.

        Raises:
            ClientConfigError: if a file cannot be removed.
        """
        with self._lock:
            try:
                # In this order: a pending one alone is settled or dropped, as without a crash; a
                # current one alone could be one whose update was counted.
                self._files.remove(self._current)
                self._files.remove(self._pending)
            except OSError as error:
                raise ClientConfigError(f"the residual cannot be removed: {error}") from error

    def reset(self, notice: str) -> None:
        """Remove everything, and keep a notice why.

        Raises:
            ClientConfigError: if a file cannot be removed.
        """
        with self._lock:
            self._notices.append(notice)
            self.forget()

    def _read(self, name: str) -> bytes | None:
        try:
            return self._files.read(name)
        except OSError as error:
            self.reset(f"the residual cannot be read: {error}")
            return None

    def _parsed(self, data: bytes) -> tuple[SubmissionKey, bytes]:
        """Take apart what `begin` wrote; the residual itself is checked where it is read."""
        if len(data) < _LENGTH.size:
            message = f"{len(data)} bytes are too few"
            raise CompressionError(message)
        (length,) = _LENGTH.unpack_from(data)
        end = _LENGTH.size + length
        if length > _MAX_NAME_BYTES or len(data) < end + _DIGEST_BYTES:
            message = f"a name of {length} bytes does not fit"
            raise CompressionError(message)
        if xxhash.xxh3_64_digest(data[:end]) != data[end : end + _DIGEST_BYTES]:
            message = "the name's checksum is wrong"
            raise CompressionError(message)
        key = _submission_key(data[_LENGTH.size : end])
        if (key.task, key.device_id) != (self._task, self._device_id):
            message = f"it is that of {key.device_id!r} for task {key.task!r}"
            raise CompressionError(message)
        return key, data[end + _DIGEST_BYTES :]


def _submission_key(name: bytes) -> SubmissionKey:
    try:
        facts = json.loads(name)
        return SubmissionKey(
            task=facts["task"],
            round=facts["round"],
            device_id=facts["device_id"],
            submission_id=facts["submission_id"],
            payload_digest=bytes.fromhex(facts["payload_digest"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        message = f"the name of its submission cannot be read: {error!r}"
        raise CompressionError(message) from error


def _framed(key: SubmissionKey) -> bytes:
    facts = {
        "task": key.task,
        "round": key.round,
        "device_id": key.device_id,
        "submission_id": key.submission_id,
        "payload_digest": key.payload_digest.hex(),
    }
    name = json.dumps(facts, sort_keys=True).encode()
    head = _LENGTH.pack(len(name)) + name
    return head + xxhash.xxh3_64_digest(head)
