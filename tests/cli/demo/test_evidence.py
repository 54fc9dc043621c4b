import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from cli.demo import evidence
from cli.demo.evidence import DEVICE_LOGS, SERVER_LOGS, Evidence
from cli.demo.settings import DATA_DIR
from cli.exit_codes import CliError
from server.storage.embedded import STORE_LOG


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (DEVICE_LOGS, SERVER_LOGS, DATA_DIR):
        (tmp_path / name).mkdir()
    return tmp_path


def _audit(folder: Path, *entries: Mapping[str, object], torn: str = "") -> None:
    lines = "".join(f"{json.dumps(entry)}\n" for entry in entries)
    (folder / DATA_DIR / "audit.jsonl").write_text(lines + torn)


async def test_contributors_are_read_from_whole_lines(folder: Path) -> None:
    _audit(folder, {"round_id": 1, "device_ids": ["a", "b"]}, torn='{"round_id": 2, "dev')
    assert await Evidence(folder).contributors([1]) == {1: ["a", "b"]}


async def test_a_round_the_audit_log_never_tells_of_is_a_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "_AUDIT_END_S", 0.0)
    with pytest.raises(CliError, match=r"rounds \[1\]"):
        await Evidence(folder).contributors([1])


def test_a_device_stands_under_one_pseudonym(folder: Path) -> None:
    found = Evidence(folder)
    assert found.pseudonym("device-0001") == Evidence(folder).pseudonym("device-0001")
    assert found.pseudonym("device-0001") != found.pseudonym("device-0002")


def _event(folder: Path, device: str, event: str, **fields: object) -> None:
    line = json.dumps({"event": event, "device": device, **fields})
    with (folder / DEVICE_LOGS / f"{device}.jsonl").open("a") as file:
        file.write(f"{line}\n")


def test_the_failure_of_a_device_is_told_in_its_own_words(folder: Path) -> None:
    found = Evidence(folder)
    assert found.last_words() == "it wrote no log"
    found.devices_log.touch()
    _event(folder, "device-0001", "checked_in", round=3)
    _event(folder, "device-0002", "failed", error="no such task")
    assert found.last_words() == found.last_words("device-0002") == "no such task"
    assert "'checked_in'" in found.last_words("device-0001")
    found.devices_log.write_text("Traceback\nMemoryError\n")
    assert found.last_words("device-0001") == "MemoryError"


def test_logs_are_kept_where_the_folder_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    (folder / SERVER_LOGS / "coordinator-1.log").write_text("last words")
    (folder / DATA_DIR / "store").mkdir()
    (folder / DATA_DIR / "store" / STORE_LOG).write_text("disk full")
    kept = Evidence(folder).keep()
    assert (kept / SERVER_LOGS / "coordinator-1.log").read_text() == "last words"
    assert (kept / STORE_LOG).read_text() == "disk full"
    assert (kept / DEVICE_LOGS).is_dir()
