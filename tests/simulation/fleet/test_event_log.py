"""Event logs: whole lines, appended, read back as they were written."""

from pathlib import Path

import pytest

from simulation.errors import SimulationError
from simulation.fleet.event_log import EventLog, read_events
from tests.simulation.acked_updates import AckedUpdate, acked_updates


def test_events_are_read_back_in_order_and_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for number in (1, 2):  # a device that starts again continues its file
        with EventLog(path, "a") as log:
            log.write("checked_in", round=number, model_version=1)
            log.write("refused", reason=None, detail="one\ntwo")
    assert list(read_events([path])) == [
        {"event": event, "device": "a"} | fields
        for number in (1, 2)
        for event, fields in (
            ("checked_in", {"round": number, "model_version": 1}),
            ("refused", {"reason": None, "detail": "one\ntwo"}),
        )
    ]


def test_an_event_is_on_disk_when_write_returns(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    log = EventLog(path, "a")
    log.write("acked", round=1)
    assert path.read_text() == '{"event": "acked", "device": "a", "round": 1}\n'
    log.close()


def test_acknowledged_updates_are_collected_from_every_device(tmp_path: Path) -> None:
    for device, number in (("b", 1), ("a", 2), ("a", 1)):
        with EventLog(tmp_path / f"{device}.jsonl", device) as log:
            log.write("submitting", round=number, submission_id="x")
            log.write("acked", round=number, submission_id="x", digest="ff")
    (tmp_path / "notes.txt").write_text("not a log")
    assert acked_updates(tmp_path) == tuple(
        AckedUpdate(device_id=device, round=number, submission_id="x", digest="ff")
        for device, number in (("a", 1), ("b", 1), ("a", 2))
    )


def test_an_update_acknowledged_twice_is_seen_twice(tmp_path: Path) -> None:
    with EventLog(tmp_path / "a.jsonl", "a") as log:
        for _ in range(2):
            log.write("acked", round=1, submission_id="x", digest="ff")
    assert len(acked_updates(tmp_path)) == 2


@pytest.mark.parametrize("line", ["{", "[]", '{"device": "a"}', "3"])
def test_a_damaged_log_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"event": "acked"}\n' + line + "\n")
    with pytest.raises(SimulationError, match=r"a\.jsonl:2 is no event"):
        list(read_events([path]))
