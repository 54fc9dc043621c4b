"""Who is in a shared round, whose updates are summed, and the hashes that bind both."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from types import MappingProxyType
from typing import Final

from security.errors import MalformedMessageError
from security.shared_round.terms.committee import is_dealer
from security.shared_round.terms.parameter_facts import Degraded

_SET_LABEL: Final = b"fedagg/frozen-set/1\x00"
_NOISED_SET_LABEL: Final = b"fedagg/noised-frozen-set/1\x00"
_SELECTION_LABEL: Final = b"fedagg/selection/1\x00"
_U32: Final = struct.Struct("<I")
_SHA256_BYTES: Final = 32
_MAX_U32: Final = 2**32 - 1


class SelectionMode(Enum):
    """How a selection came about; values are those on the wire."""

    CHECKED = 1
    DEGRADED_GROUPED = 2
    DEGRADED_UNCHECKED = 3


MODE_OF: Final = MappingProxyType(
    {
        Degraded.GROUPED: SelectionMode.DEGRADED_GROUPED,
        Degraded.UNCHECKED: SelectionMode.DEGRADED_UNCHECKED,
    }
)
"""How a round selects that opens what its degraded mode allows; the other modes open nothing."""


def may_select(mode: SelectionMode, degraded: Degraded) -> bool:
    """Tell whether a round of that degraded mode may select so."""
    return mode is SelectionMode.CHECKED or MODE_OF.get(degraded) is mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A device whose update is in the round, or a holder whose noise is.

    Attributes:
        device_id: 1 character or more; of a dealer as `dealer_id` gives it.
        header_sha256: SHA-256 of its signed header, 32 bytes.
    """

    device_id: str
    header_sha256: bytes

    def __post_init__(self) -> None:
        """Refuse a member without a name or with a hash of another length."""
        if not self.device_id:
            message = "device_id of a member must not be empty"
            raise MalformedMessageError(message)
        if len(self.header_sha256) != _SHA256_BYTES:
            message = f"header_sha256 must have {_SHA256_BYTES} bytes,"
            message += f" got {len(self.header_sha256)}"
            raise MalformedMessageError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenSet:
    """The members of a round in one attempt; a member is addressed by its position.

    Attributes:
        params_sha256: the round, 32 bytes.
        attempt: from 1.
        members: ascending by device id (as UTF-8 bytes), without repetition; at least one; none
            has a dealer's name.
        dealers: whose noise is part of every sum, likewise ascending; all have dealers' names.
        sha256: what votes, coins, openings and commitments name, 32 bytes.

    Raises:
        MalformedMessageError: if it is not so.
    """

    params_sha256: bytes
    attempt: int
    members: tuple[Member, ...]
    dealers: tuple[Member, ...] = ()
    sha256: bytes = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse another order: one set must have one hash."""
        if not 1 <= self.attempt <= _MAX_U32:
            message = f"attempt={self.attempt} must be in 1..2**32 - 1"
            raise MalformedMessageError(message)
        if not self.members:
            message = "members must not be empty"
            raise MalformedMessageError(message)
        _check_names("members", self.members, are_dealers=False)
        _check_names("dealers", self.dealers, are_dealers=True)
        digest = set_sha256(self.params_sha256, self.attempt, self.members, self.dealers)
        object.__setattr__(self, "sha256", digest)

    def position(self, device_id: str) -> int:
        """Find a member's position.

        Raises:
            KeyError: if the device is not a member.
        """
        for position, member in enumerate(self.members):
            if member.device_id == device_id:
                return position
        raise KeyError(device_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The sums that a round opens, and on what grounds.

    Attributes:
        set_sha256: the frozen set whose positions it names, 32 bytes.
        mode: how it came about.
        sums: positions of the members of each sum, ascending; at least one sum, none empty, no
            member in two.
        sha256: what commitments and sum shares name, 32 bytes.

    Raises:
        MalformedMessageError: if it is not so.
    """

    set_sha256: bytes
    mode: SelectionMode
    sums: tuple[tuple[int, ...], ...]
    sha256: bytes = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse sums that overlap: their difference could be one update."""
        if not self.sums or not all(self.sums):
            message = "sums must hold at least one, and none may be empty"
            raise MalformedMessageError(message)
        for members in self.sums:
            if list(members) != sorted(members) or members[0] < 0 or members[-1] > _MAX_U32:
                message = "members of a sum must be positions in ascending order"
                raise MalformedMessageError(message)
        every = [position for members in self.sums for position in members]
        if len(set(every)) != len(every):
            message = "no member may be in two sums, or in one twice"
            raise MalformedMessageError(message)
        digest = selection_sha256(self.set_sha256, self.mode, self.sums)
        object.__setattr__(self, "sha256", digest)

    @property
    def members(self) -> tuple[int, ...]:
        """Positions in any sum, ascending."""
        return tuple(sorted(position for members in self.sums for position in members))


def set_sha256(
    params_sha256: bytes,
    attempt: int,
    members: Sequence[Member],
    dealers: Sequence[Member] = (),
) -> bytes:
    """Hash the members of a round in one attempt, and whose noise is in its sums.

    Sets with dealers are hashed under a label of their own, with the number of members, so that no
    set has the hash of another one.
    """
    label = _NOISED_SET_LABEL if dealers else _SET_LABEL
    digest = hashlib.sha256(label + params_sha256 + _U32.pack(attempt))
    if dealers:
        digest.update(_U32.pack(len(members)))
    for member in (*members, *dealers):
        name = member.device_id.encode()
        digest.update(_U32.pack(len(name)) + name + member.header_sha256)
    return digest.digest()


def selection_sha256(
    frozen_sha256: bytes, mode: SelectionMode, sums: Sequence[Sequence[int]]
) -> bytes:
    """Hash the sums that a round opens."""
    digest = hashlib.sha256(_SELECTION_LABEL + frozen_sha256)
    digest.update(_U32.pack(mode.value) + _U32.pack(len(sums)))
    for members in sums:
        digest.update(_U32.pack(len(members)))
        digest.update(b"".join(map(_U32.pack, members)))
    return digest.digest()


def _check_names(what: str, members: Sequence[Member], *, are_dealers: bool) -> None:
    ids = [member.device_id.encode() for member in members]
    for before, after in pairwise(ids):
        if before >= after:
            message = f"{what} must be ascending by device id, without repetition"
            raise MalformedMessageError(message)
    for member in members:
        # Noise as a member would pass for an update: sums would hold fewer than they must.
        if is_dealer(member.device_id) is not are_dealers:
            message = f"device_id={member.device_id[:100]!r} is no name of {what}"
            raise MalformedMessageError(message)
