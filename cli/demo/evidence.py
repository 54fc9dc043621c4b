"""What the processes of a demonstration left in its folder."""

import asyncio
import json
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cli.demo.settings import DATA_DIR
from cli.demo.watch import kept_logs, last_line
from cli.exit_codes import CliError
from monitoring.audit_logger import KEY_FILE, load_or_create_key
from server.storage.embedded import STORE_LOG
from simulation.fleet.event_log import Field, read_events

DEVICE_LOGS: Final = "devices"
SERVER_LOGS: Final = "logs"

_AUDIT_LOG: Final = "audit.jsonl"
_AUDIT_END_S: Final = 60.0
_POLL_S: Final = 0.1


class Evidence:
    """Reads the devices' event logs, the audit log and the processes' logs.

    Args:
        folder: the demonstration's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def contributors(self, rounds: Collection[int]) -> Mapping[int, Sequence[str]]:
        """Read the pseudonyms of each finished round's contributors from the audit log.

        Waits until the log tells of all `rounds`: the last line follows its round by a moment.

        Raises:
            CliError: if it does not within a minute.
        """
        give_up_at = time.monotonic() + _AUDIT_END_S
        while True:
            found = self._audited()
            missing = [number for number in rounds if number not in found]
            if not missing:
                return found
            if time.monotonic() > give_up_at:
                msg = f"the audit log does not tell of rounds {missing}"
                raise CliError(msg)
            await asyncio.sleep(_POLL_S)

    def openings(self) -> Mapping[int, Sequence[str]]:
        """Tell what each finished round opened at most, and to whom, as the audit log tells it."""
        return {
            int(entry["round_id"]): list(entry["details"].get("opened_at_most", ()))
            for entry in self._entries()
        }

    def pseudonym(self, device_id: str) -> str:
        """Return what stands for a device in the audit log."""
        return load_or_create_key(self._folder / DATA_DIR / KEY_FILE).pseudonym(device_id)

    def device_events(self) -> list[dict[str, Field]]:
        """Return everything the devices wrote down, device by device."""
        return list(read_events(sorted((self._folder / DEVICE_LOGS).glob("*.jsonl"))))

    @property
    def devices_log(self) -> Path:
        """What the devices write to standard error."""
        return self._folder / SERVER_LOGS / "devices.log"

    def last_words(self, device: str | None = None) -> str:
        """Find what a device said last, in its event log or on standard error; None: any device."""
        events = [one for one in self.device_events() if device in {None, one["device"]}]
        errors = [str(one["error"]) for one in events if one["event"] == "failed"]
        if errors:
            return errors[0]
        if device is not None and events and not self.devices_log.stat().st_size:
            return f"the last it did was {events[-1]}"
        return last_line(self.devices_log)

    def keep(self) -> Path:
        """Copy the logs to where they stay."""
        return kept_logs(
            [self._folder / SERVER_LOGS, self._folder / DEVICE_LOGS],
            [self._folder / DATA_DIR / "store" / STORE_LOG],
        )

    def _audited(self) -> Mapping[int, Sequence[str]]:
        return {int(entry["round_id"]): list(entry["device_ids"]) for entry in self._entries()}

    def _entries(self) -> list[dict[str, Any]]:
        path = self._folder / DATA_DIR / _AUDIT_LOG
        if not path.exists():
            return []
        # Only whole lines: the last one may be under way.
        *lines, _ = path.read_text(encoding="ascii").split("\n")
        return [json.loads(line) for line in lines]
