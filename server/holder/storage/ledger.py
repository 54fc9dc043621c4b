"""What a holder remembers, as rows of one SQLite database.

    holder       what the folder belongs to: committee and index
    dealt        the keys this holder dealt, as first sent
    keys         sealed keys of the committee that others dealt to this holder
    rounds       parameters and state of every round it ever opened
    votes        the sets it voted for, with their members
    shares       headers, sealed frames, small bodies and receipts; a body's file by name
    statements   everything else it signed, as sent: asked again, the same bytes leave
    opened       SHA-256 of the statements that a purge deleted

When a round is purged its frames and bodies go, and so do the statements that tell of single
updates; what else was signed stays.
"""

import hashlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from server.holder.storage.holder_state import Ballot, HolderPhase, HolderRound

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS holder (
    id INTEGER PRIMARY KEY CHECK (id = 1), committee_sha256 BLOB NOT NULL, holder INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS dealt (
    id INTEGER PRIMARY KEY CHECK (id = 1), response BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS keys (excluded TEXT PRIMARY KEY, grant_bytes BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS rounds (
    params_sha256 BLOB PRIMARY KEY, task TEXT NOT NULL, number INTEGER NOT NULL,
    parameters BLOB NOT NULL, opened_at_s INTEGER NOT NULL, phase TEXT NOT NULL,
    box_sha256 BLOB NOT NULL, coin_sha256 BLOB NOT NULL, committed_set BLOB NOT NULL,
    selection_sha256 BLOB NOT NULL,
    UNIQUE (task, number)
) STRICT;
CREATE TABLE IF NOT EXISTS votes (
    params_sha256 BLOB NOT NULL, attempt INTEGER NOT NULL, set_sha256 BLOB NOT NULL,
    proposal BLOB NOT NULL, PRIMARY KEY (params_sha256, attempt)
) STRICT;
CREATE TABLE IF NOT EXISTS shares (
    params_sha256 BLOB NOT NULL, device_id TEXT NOT NULL, header_sha256 BLOB NOT NULL,
    header BLOB NOT NULL, receipt BLOB NOT NULL, frame BLOB, body BLOB, body_file TEXT,
    PRIMARY KEY (params_sha256, device_id)
) STRICT;
CREATE TABLE IF NOT EXISTS statements (
    params_sha256 BLOB NOT NULL, kind TEXT NOT NULL, subject BLOB NOT NULL,
    statement BLOB NOT NULL, PRIMARY KEY (params_sha256, kind, subject)
) STRICT;
CREATE TABLE IF NOT EXISTS opened (
    params_sha256 BLOB NOT NULL, kind TEXT NOT NULL, subject BLOB NOT NULL,
    statement_sha256 BLOB NOT NULL, PRIMARY KEY (params_sha256, kind, subject)
) STRICT;
"""


class StatementKind(Enum):
    """What was signed. `subject` tells several of a kind in one round apart."""

    VOTE = "vote"  # subject: the attempt
    LOCK = "lock"  # subject: the set
    COIN = "coin"  # subject: the set
    OPENINGS = "openings"  # subject: the set
    BLAME = "blame"  # subject: the set and the members
    COMMITMENT = "commitment"  # no subject: one a round, ever
    SUM = "sum"  # no subject: one a round, ever


# What shows something of single updates, or of the masks over it.
OPENING_KINDS: Final = (StatementKind.COIN, StatementKind.OPENINGS, StatementKind.BLAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRow:
    """One round as stored; `opened_at_s` in seconds since the Unix epoch."""

    params_sha256: bytes
    task: str
    number: int
    parameters: bytes
    opened_at_s: int
    state: HolderRound


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareRow:
    """One device's share as stored.

    Attributes:
        header: serialized SignedHeader.
        receipt: serialized SignedStatement.
        frame: the holder's sealed key frame; empty when purged.
        body: ciphertext of a small body, or empty.
        body_file: name of the file that holds a larger one, or empty.
    """

    device_id: str
    header_sha256: bytes
    header: bytes
    receipt: bytes
    frame: bytes
    body: bytes = b""
    body_file: str = ""


class Ledger:
    """Reads and writes rows over one connection; a transaction is the caller's to begin and end."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection

    def claim(self, committee_sha256: bytes, holder: int) -> tuple[bytes, int]:
        """Store whom the folder belongs to unless that is known, and return what is stored."""
        self._sql.execute(
            "INSERT OR IGNORE INTO holder VALUES (1, ?, ?)", (committee_sha256, holder)
        )
        found: tuple[bytes, int] = self._sql.execute(
            "SELECT committee_sha256, holder FROM holder"
        ).fetchone()
        return found

    def owner(self) -> tuple[bytes, int] | None:
        """Tell whom the folder belongs to, if that is known."""
        tables = self._sql.execute("SELECT 1 FROM sqlite_master WHERE name = 'holder'")
        if tables.fetchone() is None:
            return None
        found: tuple[bytes, int] | None = self._sql.execute(
            "SELECT committee_sha256, holder FROM holder"
        ).fetchone()
        return found

    def keep_dealt(self, response: bytes) -> bytes:
        """Store what was dealt unless something is, and return what is stored."""
        self._sql.execute("INSERT OR IGNORE INTO dealt VALUES (1, ?)", (response,))
        found: tuple[bytes] = self._sql.execute("SELECT response FROM dealt").fetchone()
        return found[0]

    def dealt(self) -> bytes | None:
        """Return the keys that this holder dealt, a DealKeysResponse; None: none yet."""
        row = self._sql.execute("SELECT response FROM dealt").fetchone()
        return None if row is None else row[0]

    def keep_key(self, excluded: str, grant: bytes) -> None:
        """Store a sealed key unless one of its set is stored: the first one counts."""
        self._sql.execute("INSERT OR IGNORE INTO keys VALUES (?, ?)", (excluded, grant))

    def keys(self) -> list[bytes]:
        """Return the sealed keys that others dealt to this holder, serialized."""
        return [row[0] for row in self._sql.execute("SELECT grant_bytes FROM keys")]

    def round(self, params_sha256: bytes) -> RoundRow | None:
        """Return a round as it is stored; None: it was never opened."""
        row = self._sql.execute(
            "SELECT task, number, parameters, opened_at_s, phase, box_sha256, coin_sha256,"
            " committed_set, selection_sha256 FROM rounds WHERE params_sha256 = ?",
            (params_sha256,),
        ).fetchone()
        if row is None:
            return None
        task, number, parameters, opened_at_s, phase, box, coin, committed_set, selection = row
        state = HolderRound(
            phase=HolderPhase(phase),
            ballots=self._ballots(params_sha256),
            box_sha256=box,
            coin_sha256=coin,
            committed_set=committed_set,
            selection_sha256=selection,
        )
        return RoundRow(
            params_sha256=params_sha256,
            task=task,
            number=number,
            parameters=parameters,
            opened_at_s=opened_at_s,
            state=state,
        )

    def round_of(self, task: str, number: int) -> bytes | None:
        """Return the SHA-256 of the parameters under which a round was opened."""
        row = self._sql.execute(
            "SELECT params_sha256 FROM rounds WHERE task = ? AND number = ?", (task, number)
        ).fetchone()
        return None if row is None else row[0]

    def open_rounds(self, opened_before_s: float = float("inf")) -> list[bytes]:
        """Return rounds that are not purged, by params_sha256, oldest first."""
        rows = self._sql.execute(
            "SELECT params_sha256 FROM rounds WHERE phase != ? AND opened_at_s < ?"
            " ORDER BY opened_at_s",
            (HolderPhase.PURGED.value, opened_before_s),
        )
        return [row[0] for row in rows]

    def insert_round(self, row: RoundRow) -> None:
        """Store a round that was opened; it has no votes yet.

        Raises:
            sqlite3.IntegrityError: if it is stored, or another one of its task and number.
        """
        self._sql.execute(
            "INSERT INTO rounds VALUES (?, ?, ?, ?, ?, ?, x'', x'', x'', x'')",
            (
                row.params_sha256,
                row.task,
                row.number,
                row.parameters,
                row.opened_at_s,
                row.state.phase.value,
            ),
        )

    def save_state(self, params_sha256: bytes, state: HolderRound) -> None:
        """Store all of the state but its ballots, which `insert_vote` stores."""
        self._sql.execute(
            "UPDATE rounds SET phase = ?, box_sha256 = ?, coin_sha256 = ?, committed_set = ?,"
            " selection_sha256 = ? WHERE params_sha256 = ?",
            (
                state.phase.value,
                state.box_sha256,
                state.coin_sha256,
                state.committed_set,
                state.selection_sha256,
                params_sha256,
            ),
        )

    def insert_vote(self, params_sha256: bytes, ballot: Ballot, proposal: bytes) -> None:
        """Store a vote with the proposal's bytes; a second one in an attempt is an error."""
        self._sql.execute(
            "INSERT INTO votes VALUES (?, ?, ?, ?)",
            (params_sha256, ballot.attempt, ballot.set_sha256, proposal),
        )

    def proposal(self, params_sha256: bytes, set_sha256: bytes) -> bytes | None:
        """Return the proposal of a set that this holder voted for."""
        row = self._sql.execute(
            "SELECT proposal FROM votes WHERE params_sha256 = ? AND set_sha256 = ?",
            (params_sha256, set_sha256),
        ).fetchone()
        return None if row is None else row[0]

    def share(self, params_sha256: bytes, device_id: str) -> ShareRow | None:
        """Return a device's share of a round; None: none is stored."""
        row = self._sql.execute(
            "SELECT device_id, header_sha256, header, receipt, frame, body, body_file FROM shares"
            " WHERE params_sha256 = ? AND device_id = ?",
            (params_sha256, device_id),
        ).fetchone()
        return None if row is None else _share(row)

    def header_digests(self, params_sha256: bytes) -> dict[str, bytes]:
        """Tell which update of each device is stored."""
        return dict(
            self._sql.execute(
                "SELECT device_id, header_sha256 FROM shares WHERE params_sha256 = ?",
                (params_sha256,),
            )
        )

    def receipts(self, params_sha256: bytes) -> list[bytes]:
        """Return every receipt of a round, by device id."""
        rows = self._sql.execute(
            "SELECT receipt FROM shares WHERE params_sha256 = ? ORDER BY device_id",
            (params_sha256,),
        )
        return [row[0] for row in rows]

    def insert_share(self, params_sha256: bytes, row: ShareRow) -> None:
        """Store a share; its body is a column or a file that was written before.

        Raises:
            sqlite3.IntegrityError: if one of this device is stored.
        """
        self._sql.execute(
            "INSERT INTO shares VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                params_sha256,
                row.device_id,
                row.header_sha256,
                row.header,
                row.receipt,
                row.frame,
                row.body,
                row.body_file or None,
            ),
        )

    def body_files(self) -> Iterator[str]:
        """Return names of all files that hold a body."""
        rows = self._sql.execute("SELECT body_file FROM shares WHERE body_file IS NOT NULL")
        return (row[0] for row in rows)

    def forget_shares(self, params_sha256: bytes) -> list[str]:
        """Drop frames and bodies of a round; return the names of the files that are left over."""
        rows = self._sql.execute(
            "SELECT body_file FROM shares WHERE params_sha256 = ? AND body_file IS NOT NULL",
            (params_sha256,),
        ).fetchall()
        self._sql.execute(
            "UPDATE shares SET frame = NULL, body = NULL, body_file = NULL WHERE params_sha256 = ?",
            (params_sha256,),
        )
        return [row[0] for row in rows]

    def statement(
        self, params_sha256: bytes, kind: StatementKind, subject: bytes = b""
    ) -> bytes | None:
        """Return a SignedStatement as it was sent."""
        row = self._sql.execute(
            "SELECT statement FROM statements WHERE params_sha256 = ? AND kind = ? AND subject = ?",
            (params_sha256, kind.value, subject),
        ).fetchone()
        return None if row is None else row[0]

    def insert_statement(
        self, params_sha256: bytes, kind: StatementKind, subject: bytes, statement: bytes
    ) -> None:
        """Store what is about to be sent; a second one of the same subject is an error."""
        self._sql.execute(
            "INSERT INTO statements VALUES (?, ?, ?, ?)",
            (params_sha256, kind.value, subject, statement),
        )

    def forget_openings(self, params_sha256: bytes) -> None:
        """Drop the round's `OPENING_KINDS`; of each, the SHA-256 stays."""
        for kind in OPENING_KINDS:
            name = (params_sha256, kind.value)
            rows = self._sql.execute(
                "SELECT subject, statement FROM statements WHERE params_sha256 = ? AND kind = ?",
                name,
            ).fetchall()
            self._sql.executemany(
                "INSERT OR IGNORE INTO opened VALUES (?, ?, ?, ?)",
                [
                    (*name, subject, hashlib.sha256(statement).digest())
                    for subject, statement in rows
                ],
            )
            self._sql.execute("DELETE FROM statements WHERE params_sha256 = ? AND kind = ?", name)

    def _ballots(self, params_sha256: bytes) -> tuple[Ballot, ...]:
        rows = self._sql.execute(
            "SELECT attempt, set_sha256 FROM votes WHERE params_sha256 = ? ORDER BY attempt",
            (params_sha256,),
        )
        return tuple(Ballot(attempt=attempt, set_sha256=digest) for attempt, digest in rows)


def _share(
    row: tuple[str, bytes, bytes, bytes, bytes | None, bytes | None, str | None],
) -> ShareRow:
    device_id, header_sha256, header, receipt, frame, body, body_file = row
    return ShareRow(
        device_id=device_id,
        header_sha256=header_sha256,
        header=header,
        receipt=receipt,
        frame=frame or b"",
        body=body or b"",
        body_file=body_file or "",
    )
