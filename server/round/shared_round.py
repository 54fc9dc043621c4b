"""What a round keeps of its shared part: everything the next leader needs, and nothing secret."""

from dataclasses import dataclass
from typing import Final

CHECKED: Final = "checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedRound:
    """The shared part of a round. Hashes are lower-case hex; holders and positions are numbers.

    Attributes:
        parameters: the serialized round parameters in hex, the same for all parties.
        min_members: fewest members of the set and of what is opened, from 2.
        attempt: number of the freeze that is proposed or made, from 1.
        members: once frozen, device id and header hash of every member, ascending by device id.
        dealers: once frozen, name and header hash of the holders whose noise is in every sum.
        set_sha256: hash of the frozen set; empty before.
        mode: once checked, how the selection came about; "checked" unless degraded.
        sums: once checked, the positions in `members` of each sum that is opened.
        selection_sha256: hash of the selection; empty before.
        excluded: devices that are admitted but in no sum, with the reason of each.
        blamed: members whose own tests were opened, because their group's failed.
        holders: share holders whose openings the selection rests on.
        liars: share holders that were caught with wrong shares.
        disputed: share holders at which some member's share was wrong, by its or their doing; the
            sums are opened without them.
    """

    parameters: str
    min_members: int = 2
    attempt: int = 1
    members: tuple[tuple[str, str], ...] = ()
    set_sha256: str = ""
    mode: str = ""
    sums: tuple[tuple[int, ...], ...] = ()
    selection_sha256: str = ""
    excluded: tuple[tuple[str, str], ...] = ()
    blamed: int = 0
    holders: tuple[int, ...] = ()
    liars: tuple[int, ...] = ()
    disputed: tuple[int, ...] = ()
    dealers: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.parameters:
            msg = "parameters must not be empty"
            raise ValueError(msg)
        if self.attempt < 1 or self.min_members < 2:
            msg = f"attempt={self.attempt} must be >= 1, min_members={self.min_members} >= 2"
            raise ValueError(msg)
        names = [device for device, _ in self.members]
        if names != sorted(set(names)):
            msg = "members must ascend by device id, without repetition"
            raise ValueError(msg)
        names = [dealer for dealer, _ in self.dealers]
        if names != sorted(set(names)):
            msg = "dealers must ascend by name, without repetition"
            raise ValueError(msg)
        positions = [position for members in self.sums for position in members]
        if len(set(positions)) != len(positions) or not all(
            0 <= position < len(self.members) for position in positions
        ):
            msg = f"sums must hold each position below {len(self.members)} at most once"
            raise ValueError(msg)

    @property
    def params_bytes(self) -> bytes:
        """The serialized round parameters."""
        return bytes.fromhex(self.parameters)

    @property
    def is_degraded(self) -> bool:
        """Whether less was checked than the parameters ask for."""
        return self.mode not in {"", CHECKED}
