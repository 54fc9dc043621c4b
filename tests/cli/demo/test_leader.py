import json
from pathlib import Path

from cli.demo.leader import leader_of


def _log(path: Path, *entries: tuple[str, bool]) -> Path:
    lines = [
        json.dumps({"at": at, "event": "leadership_changed", "leads": leads})
        for at, leads in entries
    ]
    path.write_text("\n".join(["not json", '{"event": "other"}', *lines]) + "\n")
    return path


def test_the_latest_to_lead_leads(tmp_path: Path) -> None:
    first = _log(tmp_path / "1", ("2026-01-01T00:00:01.000Z", True))
    second = _log(tmp_path / "2", ("2026-01-01T00:00:02.000Z", True))
    assert leader_of([("one", first), ("two", second)]) == "two"


def test_who_gave_it_up_does_not_lead(tmp_path: Path) -> None:
    first = _log(tmp_path / "1", ("2026-01-01T00:00:01.000Z", True))
    second = _log(
        tmp_path / "2", ("2026-01-01T00:00:02.000Z", True), ("2026-01-01T00:00:03.000Z", False)
    )
    assert leader_of([("one", first), ("two", second)]) == "one"


def test_nobody_may_lead(tmp_path: Path) -> None:
    assert leader_of([("one", _log(tmp_path / "1"))]) is None
