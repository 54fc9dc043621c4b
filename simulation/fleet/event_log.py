"""What a simulated device wrote down: the independent count of what a server acknowledged.

One JSON object per line, one file per device. Every line has `event` and `device`; further
fields by event:

    checked_in   round, model_version
    submitting   round, submission_id            the first byte leaves next
    acked        round, submission_id, digest    hex of the payload digest in the receipt
    kept         round                           the update waits for a round that takes it
    reused       round                           such an update is sent to this one
    refused      outcome, reason, round, submission_id, detail
    finished     accepted, bytes_up, bytes_down  the task is finished
    exhausted    accepted, bytes_up, bytes_down  its privacy budget allows no further round
    stopped      accepted, bytes_up, bytes_down  the device was told to end
    failed       error                           the server can never accept the device, or its
                                                 files cannot be used

`refused` also tells of a lost connection or a missed deadline: `outcome` says which. A line is
one write to a file opened for appending, so a killed process leaves whole lines only, and a
device that starts again continues its file. An acknowledged update is in the log whatever kills
the process afterwards; an update with `submitting` but without `acked` may or may not count.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from simulation.errors import SimulationError

Field = str | int | float | None


class EventLog:
    """Appends events to one device's file."""

    def __init__(self, path: Path, device_id: str) -> None:
        """Open the file, creating it where it is absent; its directory must exist."""
        self._device_id = device_id
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, event: str, **fields: Field) -> None:
        """Append one event; it survives the death of this process."""
        line = json.dumps({"event": event, "device": self._device_id} | fields)
        os.write(self._file, f"{line}\n".encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_events(paths: Iterable[Path]) -> Iterator[dict[str, Field]]:
    """Read event logs, file by file, in the order written.

    Raises:
        SimulationError: if a line is no event.
    """
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                event = json.loads(line)
            except ValueError as error:
                message = f"{path}:{number} is no event: {line[:80]!r}"
                raise SimulationError(message) from error
            if not isinstance(event, dict) or "event" not in event:
                message = f"{path}:{number} is no event: {line[:80]!r}"
                raise SimulationError(message)
            yield event
