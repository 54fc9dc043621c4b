"""The votes that fix a coin before anybody can know it.

Each replicated key k_A gives a piece of the coin, HMAC(k_A, set); the coin is the hash of them all.
t - 1 holders know all pieces but the one that they lack together. A vote names a hash of each piece
of its holder, and a quorum of votes that agree is a box: it fixes every piece, false ones too.

A holder first locks itself to one box, and reveals pieces only when a quorum is locked to that box.
Two quorums share an honest holder and it locks itself once, so one box of a round can be revealed,
and it was complete before any honest holder revealed anything: malicious holders, who choose hashes
and boxes as they like until then, choose blindly. Without locks, the first to reveal would let them
make a second box to their liking, of holders who cannot check each hash. Revealed pieces are held
against the hashes, so that every quorum of the box gives the same coin.

Only members of the box open checks: their shares were durable when they voted. A device that learns
the coin cannot make up a share that suits it for a holder that comes late.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final

from security.errors import BadStatementError, EvidenceInsufficientError
from security.secret_sharing.threshold import Threshold
from security.shared_round.terms.parameters import RoundParameters

_COMMITMENT_LABEL: Final = b"fedagg/coin-commitment/1\x00"
_BOX_LABEL: Final = b"fedagg/ballot-box/1\x00"
_U32: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True, kw_only=True)
class BallotBox:
    """A quorum of votes for one set that agree on the commitments; made by `of`.

    Attributes:
        scheme: t and n.
        set_sha256: the frozen set.
        holders: whose votes are in it, ascending; at least t.
        commitments: 32 bytes for each set of t - 1 holders, in lexicographic order.
        sha256: what locks and shares of the coin name, 32 bytes.
    """

    scheme: Threshold
    set_sha256: bytes
    holders: tuple[int, ...]
    commitments: tuple[bytes, ...]
    sha256: bytes = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Hash it."""
        digest = hashlib.sha256(_BOX_LABEL + self.set_sha256 + _U32.pack(len(self.holders)))
        digest.update(b"".join(map(_U32.pack, self.holders)))
        digest.update(b"".join(self.commitments))
        object.__setattr__(self, "sha256", digest.digest())

    @classmethod
    def of(
        cls, params: RoundParameters, set_sha256: bytes, votes: Mapping[int, Sequence[bytes]]
    ) -> "BallotBox":
        """Put votes together.

        Args:
            params: the round.
            set_sha256: the frozen set that all of them are for.
            votes: commitments of each holder, in the order of `Threshold.pieces_of`.

        Raises:
            EvidenceInsufficientError: if there are fewer than a quorum.
            BadStatementError: if two of them disagree.
        """
        if len(votes) < params.quorum:
            message = f"{len(votes)} votes must be at least quorum={params.quorum}"
            raise EvidenceInsufficientError(message)
        found = _merged(params.scheme, votes)
        if found is None:
            message = f"votes of holders {sorted(votes)} must agree on the pieces of the coin"
            raise BadStatementError(message)
        return cls(
            scheme=params.scheme,
            set_sha256=set_sha256,
            holders=tuple(sorted(votes)),
            # Any t holders have every piece, and a quorum is at least t.
            commitments=tuple(found[index] for index in range(params.scheme.num_pieces)),
        )

    def commitments_of(self, holder: int) -> tuple[bytes, ...]:
        """Give those that a holder can check: of the sets that it is not in."""
        return tuple(self.commitments[index] for index in self.scheme.pieces_of(holder))

    def check_member(self, holder: int, commitments: Sequence[bytes]) -> None:
        """Check that a holder's vote is in the box and that nobody belies its commitments.

        Raises:
            EvidenceInsufficientError: if its vote is not in it.
            BadStatementError: if a commitment is not the holder's own.
        """
        if holder not in self.holders:
            message = f"the vote of holder {holder} must be among those of {list(self.holders)}"
            raise EvidenceInsufficientError(message)
        if self.commitments_of(holder) != tuple(commitments):
            message = f"the votes must agree with the pieces of the coin that holder {holder} has"
            raise BadStatementError(message)


def piece_commitment(piece: bytes) -> bytes:
    """Hash a piece of a coin as votes name it."""
    return hashlib.sha256(_COMMITMENT_LABEL + piece).digest()


def agreeing_votes(scheme: Threshold, votes: Mapping[int, Sequence[bytes]]) -> tuple[int, ...]:
    """Choose the most votes that agree; of several choices the first in lexicographic order.

    Returns:
        Their holders, ascending; fewer than a quorum where too many disagree.
    """
    for count in range(len(votes), 0, -1):
        for holders in combinations(sorted(votes), count):
            if _merged(scheme, {holder: votes[holder] for holder in holders}) is not None:
                return holders
    return ()


def _merged(scheme: Threshold, votes: Mapping[int, Sequence[bytes]]) -> dict[int, bytes] | None:
    """Give each piece's commitment, by index; None where two votes differ."""
    found: dict[int, bytes] = {}
    for holder in sorted(votes):
        for index, commitment in zip(scheme.pieces_of(holder), votes[holder], strict=True):
            if found.setdefault(index, commitment) != commitment:
                return None
    return found
