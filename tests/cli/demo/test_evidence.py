import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from cli.demo import evidence
from cli.demo.evidence import DEVICE_LOGS, SERVER_LOGS, Evidence
from cli.demo.settings import DATA_DIR
from cli.exit_codes import CliError


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


def test_the_failure_of_a_device_is_told_in_its_own_words(folder: Path) -> None:
    (folder / DEVICE_LOGS / "d.jsonl").write_text(
        '{"event": "failed", "device": "d", "error": "no such task"}\n'
    )
    assert Evidence(folder).device_failure() == "no such task"


def test_otherwise_the_last_line_written_has_to_do(folder: Path) -> None:
    found = Evidence(folder)
    assert found.device_failure() == "no log was written"
    for age, name in enumerate(("old", "new", "empty")):
        path = folder / SERVER_LOGS / f"{name}.log"
        path.write_text("" if name == "empty" else f"first\nlast of {name}\n")
        os.utime(path, (age, age))
    assert found.last_line() == "last of new"
