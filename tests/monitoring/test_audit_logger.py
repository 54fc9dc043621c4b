"""The audit log: once for each round, durable, shared by processes, and tampering is found."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.audit_entry import GENESIS_HASH, AuditError, AuditKey
from monitoring.audit_logger import (
    KEY_FILE,
    AuditLogger,
    AuditReport,
    load_or_create_key,
    verify,
)
from tests.monitoring.test_audit_entry import ENTRY, KEY

ROOT = Path(__file__).parents[2]


def log_of(path: Path, num_rounds: int) -> AuditLogger:
    logger = AuditLogger(path, key=KEY)
    for round_id in range(1, num_rounds + 1):
        assert logger.append(dataclasses.replace(ENTRY, round_id=round_id))
    return logger


def rounds_in(path: Path) -> list[int]:
    return [json.loads(line)["round_id"] for line in path.read_bytes().splitlines()]


def test_lines_are_appended_in_order(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log_of(path, 3)
    assert rounds_in(path) == [1, 2, 3]
    report = verify(path, key=KEY)
    assert report.is_intact
    assert report.entries == 3
    assert report.head == json.loads(path.read_bytes().splitlines()[-1])["hash"]


def test_a_round_is_logged_once(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    logger = log_of(path, 2)
    before = path.read_bytes()
    assert not logger.append(dataclasses.replace(ENTRY, round_id=2, decision="abandoned"))
    assert path.read_bytes() == before
    # The same number in another task is another round.
    assert logger.append(dataclasses.replace(ENTRY, task="words", round_id=2))


def test_a_round_is_logged_once_across_restarts(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log_of(path, 2)
    restarted = AuditLogger(path, key=KEY)
    assert not restarted.append(dataclasses.replace(ENTRY, round_id=1))
    assert restarted.append(dataclasses.replace(ENTRY, round_id=3))
    assert verify(path, key=KEY).is_intact


def test_two_loggers_see_each_others_lines(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    first, second = AuditLogger(path, key=KEY), AuditLogger(path, key=KEY)
    for round_id in range(1, 6):
        entry = dataclasses.replace(ENTRY, round_id=round_id)
        mine, other = (first, second) if round_id % 2 else (second, first)
        assert mine.append(entry)
        assert not other.append(entry)
    assert rounds_in(path) == [1, 2, 3, 4, 5]
    assert verify(path, key=KEY).is_intact


APPENDER = """
import dataclasses, sys
from pathlib import Path
from monitoring.audit_logger import AuditLogger
from tests.monitoring.test_audit_entry import ENTRY
logger = AuditLogger(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(sum(logger.append(dataclasses.replace(ENTRY, round_id=n)) for n in range(40)))
"""


@pytest.mark.slow
def test_processes_share_one_log_and_one_key(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", APPENDER, str(path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    appended = [int(worker.communicate()[0]) for worker in workers]
    assert sum(appended) == 40
    assert sorted(rounds_in(path)) == list(range(40))
    assert verify(path, key=load_or_create_key(tmp_path / KEY_FILE)).is_intact


@pytest.mark.slow
@given(cut=st.integers(min_value=1, max_value=600))
def test_a_line_cut_short_by_a_crash_is_dropped(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    log_of(path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    torn = lines[2][: -min(cut, len(lines[2]))]
    path.write_bytes(lines[0] + lines[1] + torn)
    assert verify(path, key=KEY).is_intact == (not torn)

    restarted = AuditLogger(path, key=KEY)
    assert restarted.append(dataclasses.replace(ENTRY, round_id=3))
    assert path.read_bytes() == b"".join(lines)
    assert verify(path, key=KEY).is_intact


def test_a_write_that_fails_leaves_no_part_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    logger = log_of(path, 1)
    before = path.read_bytes()

    def fail(file: int) -> None:
        raise OSError(28, os.strerror(28), file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            logger.append(dataclasses.replace(ENTRY, round_id=2))
    assert path.read_bytes() == before
    assert logger.append(dataclasses.replace(ENTRY, round_id=2))
    assert verify(path, key=KEY).is_intact


def test_a_log_that_was_moved_away_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    logger = log_of(path, 2)
    path.rename(tmp_path / "old.jsonl")
    assert logger.append(ENTRY)
    assert verify(path, key=KEY).is_intact
    assert json.loads(path.read_bytes())["prev_hash"] == GENESIS_HASH


Tamper = Callable[[list[bytes]], list[bytes]]


def edited(lines: list[bytes], index: int) -> list[bytes]:
    changed = lines[index].replace(b'"accepted":2', b'"accepted":9')
    assert changed != lines[index]
    return [*lines[:index], changed, *lines[index + 1 :]]


@pytest.mark.parametrize(
    "tamper",
    [
        lambda lines: edited(lines, 0),
        lambda lines: edited(lines, 2),
        lambda lines: edited(lines, 4),
        lambda lines: lines[1:],
        lambda lines: lines[:2] + lines[3:],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [*lines[:2], b"\n", *lines[2:]],
        lambda lines: [*lines[:2], b"{\n", *lines[3:]],
        lambda lines: [*lines[:2], lines[2].replace(b",", b", ", 1), *lines[3:]],
        lambda lines: [*lines[:2], b'{"hash":NaN}\n', *lines[3:]],
        lambda lines: [*lines[:4], b"[" * 100_000 + b"\n"],
        lambda lines: [*lines[:4], b'{"hash":"\\ud800"}\n'],
    ],
)
def test_tampering_is_found_even_without_the_key(tmp_path: Path, tamper: Tamper) -> None:
    path = tmp_path / "audit.jsonl"
    log_of(path, 5)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(tamper(lines)))
    assert not verify(path).is_intact
    assert not verify(path, key=KEY).is_intact


@pytest.mark.slow
@given(position=st.integers(min_value=0), flip=st.integers(min_value=1, max_value=255))
def test_any_changed_byte_is_found(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int
) -> None:
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    log_of(path, 3)
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= flip
    path.write_bytes(data)
    assert not verify(path, key=KEY).is_intact


def test_a_rewritten_chain_is_found_with_the_key_only(tmp_path: Path) -> None:
    genuine, forged = tmp_path / "audit.jsonl", tmp_path / "forged.jsonl"
    log_of(genuine, 3)
    forger = AuditLogger(forged, key=AuditKey(bytes(32)))
    for round_id in (1, 2, 3):
        forger.append(dataclasses.replace(ENTRY, round_id=round_id, accepted=9))
    assert verify(forged).is_intact
    report = verify(forged, key=KEY)
    assert report.problems[0] == "line 1: its code was not made with the installation's key"


def test_lines_cut_off_the_end_are_found_with_a_noted_head(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    logger = log_of(path, 3)
    head = verify(path).head
    logger.append(dataclasses.replace(ENTRY, round_id=4))
    assert verify(path, key=KEY, expected_head=head).is_intact
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))
    assert verify(path, key=KEY).is_intact
    assert not verify(path, key=KEY, expected_head=head).is_intact


def test_a_damaged_log_goes_on_and_stays_evident(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log_of(path, 2)
    path.write_bytes(path.read_bytes() + b"garbage\n")
    assert AuditLogger(path, key=KEY).append(dataclasses.replace(ENTRY, round_id=3))
    report = verify(path, key=KEY)
    assert report.problems == ("line 3: not a JSON object",)


def test_an_empty_log_is_intact(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.touch()
    assert verify(path) == AuditReport(entries=0, head=GENESIS_HASH, problems=())


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / KEY_FILE
    key = load_or_create_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_create_key(path) == key
    assert [file.name for file in tmp_path.iterdir()] == [KEY_FILE]
    assert load_or_create_key(tmp_path / "other.key") != key


def test_a_damaged_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_text("not hex")
    with pytest.raises(AuditError, match="32 bytes in hex"):
        AuditLogger(tmp_path / "audit.jsonl")
