"""Were all acknowledged updates counted, once? Asked of the devices' own logs, not of the server.

A device writes down every acknowledgement it holds (`simulation.fleet.event_log`); the audit log
names, by pseudonym, who contributed to each finished round.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from simulation.fleet.event_log import Field


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What does not add up.

    Attributes:
        acknowledged: updates that devices hold an acknowledgement for.
        lost: acknowledged, but not among the contributions of their round, though that or a later
            round has finished.
        duplicate: contributions beyond one for each device that submitted in the round, and second
            acknowledgements of one device in one round for another update.
    """

    acknowledged: int
    lost: int
    duplicate: int


def tally(
    events: Iterable[Mapping[str, Field]],
    contributors: Mapping[int, Sequence[str]],
    pseudonym: Callable[[str], str],
) -> Tally:
    """Compare the devices' logs with the contributors of each finished round.

    Args:
        events: every device's events.
        contributors: pseudonyms of each finished round's contributing devices, as listed.
        pseudonym: what stands for a device id in `contributors`.
    """
    acked: defaultdict[tuple[int, str], set[str]] = defaultdict(set)
    submitted: set[tuple[int, str]] = set()
    for event in events:
        place = (int(event.get("round") or 0), pseudonym(str(event["device"])))
        if event["event"] == "submitting":
            submitted.add(place)
        elif event["event"] == "acked":
            acked[place].add(str(event["submission_id"]))
    counted = Counter(
        (number, device) for number, devices in contributors.items() for device in devices
    )
    once = sum(place in submitted for place in counted)
    last = max(contributors, default=0)
    return Tally(
        acknowledged=sum(len(submissions) for submissions in acked.values()),
        # What was acknowledged for a round that is still open is neither counted nor lost.
        lost=sum(place not in counted and place[0] <= last for place in acked),
        duplicate=counted.total()
        - once
        + sum(len(submissions) - 1 for submissions in acked.values()),
    )


def model_bytes_down(
    events: Iterable[Mapping[str, Field]], model_bytes: Mapping[int, int]
) -> dict[int, int]:
    """Add up the model bytes that devices fetched in each round.

    A device fetches a version once and keeps it for later rounds.

    Args:
        events: every device's events, in the order written.
        model_bytes: file size of each version.

    Returns:
        Bytes by round; rounds nobody checked in for are absent.
    """
    fetched: set[tuple[str, int]] = set()
    down: dict[int, int] = {}
    for event in events:
        if event["event"] != "checked_in":
            continue
        number, version = int(event["round"] or 0), int(event["model_version"] or 0)
        copy = (str(event["device"]), version)
        size = 0 if copy in fetched else model_bytes.get(version, 0)
        fetched.add(copy)
        down[number] = down.get(number, 0) + size
    return down
