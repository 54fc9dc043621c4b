"""The updates that devices of a simulation were promised, read from their event logs."""

from dataclasses import dataclass
from pathlib import Path

from simulation.fleet.event_log import read_events


@dataclass(frozen=True, slots=True, kw_only=True)
class AckedUpdate:
    """One update a server promised to count, as the device holds the promise.

    Attributes:
        digest: payload digest, 32 lower-case hex digits.
    """

    device_id: str
    round: int
    submission_id: str
    digest: str


def acked_updates(log_dir: Path) -> tuple[AckedUpdate, ...]:
    """Collect every `acked` line, repeated ones too, ordered by round, device and submission."""
    acked = [
        AckedUpdate(
            device_id=str(event["device"]),
            round=int(event["round"] or 0),
            submission_id=str(event["submission_id"]),
            digest=str(event["digest"]),
        )
        for event in read_events(sorted(log_dir.glob("*.jsonl")))
        if event["event"] == "acked"
    ]
    return tuple(sorted(acked, key=lambda ack: (ack.round, ack.device_id, ack.submission_id)))
