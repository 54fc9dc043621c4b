"""The holder's folder: groups of changes, what crashes leave over, and who may use it."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from server.config.durability import Durability
from server.errors import StoreUnavailable
from server.holder.storage.holder_state import HolderRound
from server.holder.storage.holder_storage import HolderStorage
from server.holder.storage.ledger import Ledger, RoundRow, ShareRow, StatementKind

ROUND = RoundRow(
    params_sha256=bytes(32),
    task="digits",
    number=1,
    parameters=b"p",
    opened_at_s=5,
    state=HolderRound(),
)


class RefusedChange(Exception):
    """A change that does not want to happen."""


def open_storage(folder: Path, durability: Durability = Durability.MACHINE) -> HolderStorage:
    return HolderStorage(folder, durability=durability)


def share(device_id: str, body_file: str = "") -> ShareRow:
    return ShareRow(
        device_id=device_id,
        header_sha256=bytes(32),
        header=b"h",
        receipt=b"r",
        frame=b"frame",
        body=b"" if body_file else b"body",
        body_file=body_file,
    )


def test_what_was_written_is_there_when_the_folder_is_opened_again(tmp_path: Path) -> None:
    first = open_storage(tmp_path)
    first.write(lambda ledger: ledger.insert_round(ROUND))
    first.close()
    second = open_storage(tmp_path)
    assert second.read(lambda ledger: ledger.round(ROUND.params_sha256)) == ROUND
    second.close()


@pytest.mark.parametrize("durability", Durability)
def test_a_file_is_synced_before_it_has_its_name_where_machines_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    storage = open_storage(tmp_path, durability)
    synced: list[str] = []
    real = os.fsync

    def recording(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", recording)
    with storage.bodies.create("body") as file:
        file.write(b"x")
        file.finish()
    monkeypatch.undo()
    assert storage.bodies.path("body").read_bytes() == b"x"
    storage.close()
    if durability is Durability.PROCESS:
        assert synced == []
    else:
        # The file as long as it has no name, then the folder that names it.
        temporary, folder = synced
        assert temporary != "body"
        assert folder == "bodies"


def test_a_change_that_raises_leaves_no_trace_and_hurts_no_other(tmp_path: Path) -> None:
    storage = open_storage(tmp_path, Durability.PROCESS)

    def refused(ledger: Ledger) -> None:
        ledger.insert_statement(bytes(32), StatementKind.COIN, b"refused", b"s")
        raise RefusedChange

    def insert(number: int) -> None:
        subject = bytes([number])
        storage.write(
            lambda ledger: ledger.insert_statement(bytes(32), StatementKind.COIN, subject, b"s")
        )

    def refuse() -> None:
        with pytest.raises(RefusedChange):
            storage.write(refused)

    threads = [threading.Thread(target=insert, args=(number,)) for number in range(20)]
    threads += [threading.Thread(target=refuse) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(20):
        found = storage.read(
            lambda ledger, subject=bytes([number]): ledger.statement(  # type: ignore[misc]
                bytes(32), StatementKind.COIN, subject
            )
        )
        assert found == b"s"
    assert (
        storage.read(lambda ledger: ledger.statement(bytes(32), StatementKind.COIN, b"refused"))
        is None
    )
    storage.close()


def test_one_process_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    storage = open_storage(tmp_path, Durability.PROCESS)
    with pytest.raises(StoreUnavailable, match="in use"):
        open_storage(tmp_path)
    storage.close()
    open_storage(tmp_path).close()


def test_files_without_a_row_are_swept_and_others_kept(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    for name in ("kept", "orphan"):
        with storage.bodies.create(name) as file:
            file.write(b"body")
            file.finish()
    unfinished = storage.bodies.create("torn")
    unfinished.write(b"half")
    storage.write(lambda ledger: ledger.insert_share(bytes(32), share("anna", "kept")))
    storage.close()
    storage = open_storage(tmp_path)
    assert [path.name for path in (tmp_path / "bodies").iterdir()] == ["kept"]
    unfinished.discard()
    storage.close()


def test_an_unfinished_file_has_no_name_and_leaves_nothing(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    with storage.sums.create("sum") as file:
        file.write(b"half")
        assert not storage.sums.path("sum").exists()
    assert list((tmp_path / "sums").iterdir()) == []
    storage.close()


def test_what_a_purge_deletes_is_not_in_any_file_any_more(tmp_path: Path) -> None:
    storage = open_storage(tmp_path, Durability.PROCESS)
    row = share("anna")
    marked = ShareRow(
        device_id=row.device_id,
        header_sha256=row.header_sha256,
        header=row.header,
        receipt=row.receipt,
        frame=b"a frame that must go" * 10,
        body=b"a body that must go" * 10,
    )
    storage.write(lambda ledger: ledger.insert_share(bytes(32), marked))
    assert storage.write(lambda ledger: ledger.forget_shares(bytes(32))) == []
    storage.forget_deleted()
    left = b"".join(path.read_bytes() for path in tmp_path.glob("holder.sqlite3*"))
    assert b"must go" not in left
    assert storage.read(lambda ledger: ledger.receipts(bytes(32))) == [b"r"]
    storage.close()


def test_a_closed_storage_refuses(tmp_path: Path) -> None:
    storage = open_storage(tmp_path, Durability.PROCESS)
    storage.close()
    with pytest.raises(StoreUnavailable, match="stopping"):
        storage.write(lambda ledger: ledger.insert_round(ROUND))


@pytest.mark.parametrize("durability", Durability)
def test_the_log_is_synced_as_the_durability_asks(tmp_path: Path, durability: Durability) -> None:
    storage = open_storage(tmp_path, durability)
    (mode,) = storage._reader.execute("PRAGMA synchronous").fetchone()
    assert mode == {Durability.PROCESS: 1, Durability.MACHINE: 2}[durability]
    storage.close()


def test_another_process_that_looks_into_the_database_takes_nothing_away(tmp_path: Path) -> None:
    """SQLite's last connection deletes the log: the holder's must still be counted."""
    look = (
        "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT {}').fetchall())"
    )

    def looked(what: str) -> str:
        command = [sys.executable, "-c", look.format(what), str(tmp_path / "holder.sqlite3")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    storage = open_storage(tmp_path, Durability.PROCESS)
    try:
        assert looked("COUNT(*) FROM keys") == "[(0,)]"
        storage.write(lambda ledger: ledger.keep_key("1", b"key"))
        assert looked("COUNT(*) FROM keys") == "[(1,)]"
    finally:
        storage.close()


@pytest.mark.parametrize("attempt", range(10))
def test_a_write_that_races_with_the_end_is_done_or_refused(tmp_path: Path, attempt: int) -> None:
    del attempt
    storage = open_storage(tmp_path, Durability.PROCESS)
    outcomes: list[str] = []
    start = threading.Barrier(5)

    def write(number: int) -> None:
        start.wait()
        try:
            storage.write(lambda ledger: ledger.keep_key(str(number), b"key"))
            outcomes.append("done")
        except StoreUnavailable:
            outcomes.append("refused")

    threads = [threading.Thread(target=write, args=(n,), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    start.wait()
    storage.close()
    for thread in threads:
        thread.join(10)
    assert len(outcomes) == len(threads)
    storage.close()  # once more is no harm
    again = open_storage(tmp_path, Durability.PROCESS)
    assert len(again.read(lambda ledger: ledger.keys())) == outcomes.count("done")
    again.close()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError, SystemExit])
def test_whatever_a_change_raises_is_its_own(tmp_path: Path, failure: type[BaseException]) -> None:
    storage = open_storage(tmp_path, Durability.PROCESS)

    def fail(ledger: Ledger) -> None:
        ledger.keep_key("1", b"key")
        raise failure

    with pytest.raises(failure):
        storage.write(fail)
    storage.write(lambda ledger: ledger.keep_key("2", b"key"))
    assert storage.read(lambda ledger: ledger.keys()) == [b"key"]
    storage.close()


def test_a_failure_of_the_thread_itself_fails_one_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(tmp_path, Durability.PROCESS)

    def broken(*_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr("server.holder.storage.holder_storage._attempt", broken)
        with pytest.raises(StoreUnavailable, match="RuntimeError"):
            storage.write(lambda ledger: ledger.keep_key("1", b"key"))
    storage.write(lambda ledger: ledger.keep_key("2", b"key"))
    assert storage.read(lambda ledger: ledger.keys()) == [b"key"]
    storage.close()
