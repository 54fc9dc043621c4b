"""The append-only audit log: one line for each finished round, tampering evident.

Every line names the hash of the line before it and carries a code under the installation's key
(see `audit_entry`). Whoever edits, drops, reorders or inserts a line breaks the chain, and without
the key cannot mend it. Cutting lines off the end leaves a shorter valid log: compare with a head
hash noted elsewhere (`AuditReport.head`, `verify(..., expected_head=...)`).
"""

import fcntl
import hashlib
import json
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from monitoring.audit_entry import (
    GENESIS_HASH,
    AuditEntry,
    AuditError,
    AuditKey,
    canonical,
    render_line,
)
from monitoring.logs import get_logger

KEY_FILE: Final = "audit.key"

_KEY_BYTES: Final = 32
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What `verify` found.

    Attributes:
        entries: number of lines read.
        head: hash of the last line; 64 zeros for an empty log.
        problems: one sentence for each fault, with its line number; empty where all is well.
    """

    entries: int
    head: str
    problems: tuple[str, ...]

    @property
    def is_intact(self) -> bool:
        """True where no fault was found."""
        return not self.problems


class AuditLogger:
    """Appends finished rounds to one file.

    Concurrency: threads, and processes that share the file, may append at any time; a lock on the
    file orders them. Durability: when `append` returns, the line is on disk. A line that a crash
    cut short was never acknowledged and is dropped by the next append.

    Blocking: `append` waits for the lock and for the disk; call it off the event loop.
    """

    def __init__(self, path: Path, *, key: AuditKey | None = None) -> None:
        """Open the log at `path`, which is created with the first entry.

        Args:
            path: the log file; its folder must exist.
            key: the installation's key; by default the one stored next to the log, created with
                the first logger there.

        Raises:
            AuditError: if the stored key is damaged.
            OSError: if the folder cannot be read or written.
        """
        self._path = path
        self._key = load_or_create_key(path.parent / KEY_FILE) if key is None else key
        self._lock = threading.Lock()
        self._reset()

    def append(self, entry: AuditEntry) -> bool:
        """Log a round once.

        Returns:
            False where a line for this task and round is there already, whatever it says.

        Raises:
            OSError: if the line could not be made durable; appending again is safe.

        Cost: one fsync, and the reading of lines appended by others since the last call.
        """
        with self._lock, self._open_locked() as file:
            self._catch_up(file)
            identity = (entry.task, entry.round_id)
            if identity in self._seen:
                return False
            line = render_line(entry, key=self._key, prev_hash=self._head)
            _write_durably(file, line, end=self._end)
            self._take(line)
            return True

    def _reset(self) -> None:
        self._inode = 0
        self._end = 0
        self._head = GENESIS_HASH
        self._seen: set[tuple[str, int]] = set()

    @contextmanager
    def _open_locked(self) -> Iterator[int]:
        is_new = not self._path.exists()
        file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if is_new:
                _sync_folder(self._path.parent)
            yield file
        finally:
            # Closing releases the lock.
            os.close(file)

    def _catch_up(self, file: int) -> None:
        status = os.fstat(file)
        if status.st_ino != self._inode or status.st_size < self._end:
            # Another file has taken the path: moved away, restored or cut.
            self._reset()
            self._inode = status.st_ino
        tail = _read(file, self._end, status.st_size)
        *lines, torn = tail.split(b"\n")
        for line in lines:
            self._take(line + b"\n")
        if torn:
            _log.warning("audit_torn_line_dropped", path=str(self._path), num_bytes=len(torn))
            os.ftruncate(file, self._end)

    def _take(self, line: bytes) -> None:
        """Account for one complete line of the file, valid or not."""
        self._end += len(line)
        content = _parse(line)
        self._head = _hash_of(line, content)
        task, round_id = content.get("task"), content.get("round_id")
        if isinstance(task, str) and isinstance(round_id, int):
            self._seen.add((task, round_id))


def verify(
    path: Path, *, key: AuditKey | None = None, expected_head: str | None = None
) -> AuditReport:
    """Check every line of a log.

    Args:
        path: the log file.
        key: the installation's key; without it only the hash chain is checked, which whoever can
            write the file can also rewrite from some line on.
        expected_head: hash of a line that must be in the log, noted at an earlier time: finds
            lines cut off the end.

    Raises:
        OSError: if the file cannot be read.
    """
    problems: list[str] = []
    hashes = {GENESIS_HASH}
    rounds: set[tuple[object, object]] = set()
    head = GENESIS_HASH
    *lines, torn = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        content = _parse(line)
        problems += [f"line {number}: {fault}" for fault in _faults(line, content, head, key)]
        identity = (content.get("task"), content.get("round_id"))
        if content and identity in rounds:
            problems.append(f"line {number}: round {identity[1]} of {identity[0]} is there twice")
        rounds.add(identity)
        head = _hash_of(line, content)
        hashes.add(head)
    if torn:
        problems.append(f"line {len(lines) + 1}: cut short, never acknowledged")
    if expected_head is not None and expected_head not in hashes:
        problems.append(f"no line has the expected hash {expected_head}: lines are missing")
    return AuditReport(entries=len(lines), head=head, problems=tuple(problems))


def load_or_create_key(path: Path) -> AuditKey:
    """Return the key stored at `path`; create it, readable by its owner only, where there is none.

    Processes that start at once agree on one key.

    Raises:
        AuditError: if the file does not hold 32 bytes in hex.
        OSError: if it can neither be read nor created.
    """
    if not path.exists():
        _create_once(path, secrets.token_bytes(_KEY_BYTES).hex().encode() + b"\n")
    try:
        return AuditKey(bytes.fromhex(path.read_text(encoding="ascii")))
    except ValueError as error:
        msg = f"{path} does not hold an audit key of 32 bytes in hex"
        raise AuditError(msg) from error


def _faults(
    line: bytes, content: dict[str, object], prev_hash: str, key: AuditKey | None
) -> Iterator[str]:
    if not content:
        yield "not a JSON object"
        return
    if canonical(content) != line:
        yield "not in canonical form"
    if content.get("prev_hash") != prev_hash:
        yield "does not follow the line before it"
    line_hash = content.get("hash")
    hashed = {name: value for name, value in content.items() if name not in {"hash", "mac"}}
    if line_hash != hashlib.sha256(canonical(hashed)).hexdigest():
        yield "its content does not match its hash"
    if key is not None and content.get("mac") != key.line_mac(str(line_hash)):
        yield "its code was not made with the installation's key"


def _parse(line: bytes) -> dict[str, object]:
    """Parse the object that a line holds; empty where it holds none."""
    try:
        content = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _refuse_constant(constant: str) -> float:
    msg = f"{constant} is not JSON"
    raise ValueError(msg)


def _hash_of(line: bytes, content: dict[str, object]) -> str:
    stored = content.get("hash")
    # A damaged line still takes its place in the chain, so that the next one can follow it.
    return stored if isinstance(stored, str) else hashlib.sha256(line.rstrip(b"\n")).hexdigest()


def _read(file: int, start: int, end: int) -> bytes:
    chunks: list[bytes] = []
    while start < end and (chunk := os.pread(file, end - start, start)):
        chunks.append(chunk)
        start += len(chunk)
    return b"".join(chunks)


def _write_durably(file: int, line: bytes, *, end: int) -> None:
    view = memoryview(line)
    try:
        while view:
            view = view[os.write(file, view) :]
        os.fsync(file)
    except OSError:
        # Take a part back, so that readers see whole lines; the next append would do so too.
        os.ftruncate(file, end)
        raise


def _create_once(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _write_durably(file, content, end=0)
        # A link fails where another process was first; a rename would replace its key.
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        os.close(file)
        temporary.unlink()
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
