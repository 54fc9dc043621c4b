"""Which coordinator leads, by what the coordinators write into their logs."""

import json
from collections.abc import Iterable
from pathlib import Path


def leader_of(logs: Iterable[tuple[str, Path]]) -> str | None:
    """Name the process whose log says last that it leads; None where none says so.

    Args:
        logs: name and JSON log of each process.
    """
    latest: tuple[str, str] | None = None
    for name, path in logs:
        leads_since = _leads_since(path)
        if leads_since is not None and (latest is None or leads_since > latest[0]):
            latest = (leads_since, name)
    return latest[1] if latest else None


def _leads_since(path: Path) -> str | None:
    """Return the instant (RFC 3339, UTC) from which the process has led; None where it does not."""
    since: str | None = None
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # another library's line
        if isinstance(entry, dict) and entry.get("event") == "leadership_changed":
            since = str(entry["at"]) if entry.get("leads") else None
    return since
