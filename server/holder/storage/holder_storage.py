"""A holder's folder: its database and the files of larger bodies, released sums and dealt noise.

    holder.sqlite3    see `ledger.py`
    bodies/<name>     the ciphertext of one body
    sums/<name>       this holder's share of the sums of one round
    noise/<name>      the noise that this holder deals in one round, sealed
    lock              held while a process works here

One thread writes the database. What several callers want written at once becomes one transaction,
each of them inside a savepoint of its own: a refused one leaves no trace and hurts no other.
"""

import contextlib
import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, TypeVar

from server.config.durability import Durability
from server.errors import StoreUnavailable
from server.holder.storage.file_area import FILE_MODE, FOLDER_MODE, FileArea, unavailable
from server.holder.storage.ledger import SCHEMA, Ledger

R = TypeVar("R")

_DATABASE: Final = "holder.sqlite3"
_MAX_GROUP: Final = 1024
_BUSY_TIMEOUT_S: Final = 30.0


def owner_of(folder: Path) -> tuple[bytes, int] | None:
    """Tell whose folder it is: committee and holder; None: nobody's yet. Changes nothing.

    Raises:
        StoreUnavailable: if there is a database that cannot be read.
    """
    database = folder / _DATABASE
    if not database.exists():
        return None
    # Without a log nobody writes, and a reader that is told so makes no files of its own.
    is_quiet = not (folder / f"{_DATABASE}-wal").exists()
    url = f"{database.absolute().as_uri()}?mode=ro" + ("&immutable=1" if is_quiet else "")
    try:
        with contextlib.closing(sqlite3.connect(url, uri=True)) as connection:
            return Ledger(connection).owner()
    except sqlite3.Error as error:
        msg = f"{database}: {error}"
        raise StoreUnavailable(msg) from error


class HolderStorage:
    """The durable state of one holder; open it once. For any number of threads.

    Args:
        folder: made where it is not there.
        durability: what everything written survives when `write` returns.

    Raises:
        StoreUnavailable: if another process works in the folder, or it cannot be used.
    """

    def __init__(self, folder: Path, *, durability: Durability) -> None:
        self._fsync = durability is Durability.MACHINE
        self._folder = folder
        try:
            folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            self._lock_fd = _lock(folder / "lock")
            # Only here, before any connection: to close a file drops every lock that the process
            # holds on it, and SQLite's locks keep others from deleting the log under this holder.
            os.close(os.open(folder / _DATABASE, os.O_CREAT | os.O_RDWR, FILE_MODE))
        except OSError as error:
            msg = f"data-dir {folder}: {error.strerror or error}"
            raise StoreUnavailable(msg) from error
        self.bodies = FileArea(folder / "bodies", fsync=self._fsync)
        self.sums = FileArea(folder / "sums", fsync=self._fsync)
        self.noise = FileArea(folder / "noise", fsync=self._fsync)
        self._reader = self._connect()
        self._reader.executescript(SCHEMA)
        self._read_lock = threading.Lock()
        self._is_closed = False
        # Nothing is queued behind the end: it would never be answered.
        self._queue_lock = threading.Lock()
        self._changes: queue.SimpleQueue[_Change | None] = queue.SimpleQueue()
        self._writer = self._connect()
        self._thread = threading.Thread(target=self._write_all, name="holder-writer", daemon=True)
        self._thread.start()
        self.bodies.sweep(set(self.read(lambda ledger: list(ledger.body_files()))))
        rounds = {digest.hex() for digest in self.read(lambda ledger: ledger.open_rounds())}
        self.sums.sweep(rounds)
        self.noise.sweep(rounds)

    def read(self, question: Callable[[Ledger], R]) -> R:
        """Answer a question from what is committed.

        Raises:
            StoreUnavailable: if the database cannot be read.
        """
        with self._read_lock:
            try:
                return question(Ledger(self._reader))
            except sqlite3.Error as error:
                raise unavailable("read", error) from error

    def write(self, change: Callable[[Ledger], R]) -> R:
        """Make a change; whatever `change` raises undoes all of it.

        The change runs in the writing thread, after every change before it and before any other:
        what it reads cannot change under it.

        Returns:
            What `change` returned, once that is durable.

        Raises:
            StoreUnavailable: if the database cannot be written; nothing was changed.
        """
        future: Future[Any] = Future()
        with self._queue_lock:
            if self._is_closed:
                msg = "the holder is stopping"
                raise StoreUnavailable(msg)
            self._changes.put((change, future))
        result: R = future.result()
        return result

    def forget_deleted(self) -> None:
        """Overwrite what was deleted also in the write-ahead log."""
        with self._read_lock:
            self._reader.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Finish what was asked for and close everything."""
        with self._queue_lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._changes.put(None)
        self._thread.join()
        self._reader.close()
        os.close(self._lock_fd)

    def _connect(self) -> sqlite3.Connection:
        # Transactions are begun by hand; locks and the one writing thread keep threads apart.
        connection = sqlite3.connect(
            self._folder / _DATABASE,
            timeout=_BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA journal_mode = WAL")
        # In WAL mode, FULL syncs the log at every commit and NORMAL only at checkpoints.
        connection.execute(f"PRAGMA synchronous = {'FULL' if self._fsync else 'NORMAL'}")
        connection.execute("PRAGMA secure_delete = ON")
        return connection

    def _write_all(self) -> None:
        try:
            while (group := self._next_group()) is not None:
                _commit(self._writer, group)
        finally:
            self._writer.close()

    def _next_group(self) -> "list[_Change] | None":
        """Wait for a change and take along what waits already; None: the storage closes."""
        first = self._changes.get()
        if first is None:
            return None
        group = [first]
        while len(group) < _MAX_GROUP:
            try:
                change = self._changes.get_nowait()
            except queue.Empty:
                break
            if change is None:
                self._changes.put(None)
                break
            group.append(change)
        return group


_Change = tuple[Callable[[Ledger], Any], "Future[Any]"]


def _commit(connection: sqlite3.Connection, group: list[_Change]) -> None:
    """Run a group of changes in one transaction and answer all of them when it is durable."""
    ledger = Ledger(connection)
    outcomes: list[tuple[Future[Any], Any, BaseException | None]] = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        for change, future in group:
            outcomes.append((future, *_attempt(connection, ledger, change)))
        connection.execute("COMMIT")
    except Exception as error:  # whatever it is, the thread must go on with the next group
        with contextlib.suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        for _, future in group:
            future.set_exception(unavailable("write", error))
        return
    for future, result, failure in outcomes:
        if failure is None:
            future.set_result(result)
        else:
            future.set_exception(failure)


def _attempt(
    connection: sqlite3.Connection, ledger: Ledger, change: Callable[[Ledger], Any]
) -> tuple[Any, BaseException | None]:
    outcome: tuple[Any, BaseException | None]
    connection.execute("SAVEPOINT change")
    try:
        outcome = change(ledger), None
    except sqlite3.OperationalError:
        raise  # the disk or the file: no change of the group can be trusted
    except BaseException as error:  # the caller's to judge; raised there, not in this thread
        connection.execute("ROLLBACK TO change")
        outcome = None, error
    connection.execute("RELEASE change")
    return outcome


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        msg = f"{path.parent} is in use by another process"
        raise OSError(msg) from error
    return fd
