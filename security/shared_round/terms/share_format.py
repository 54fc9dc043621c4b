"""How a vector is shared among the holders of a committee: two formats behind one interface.

A device draws one key for each seeded piece and one for each body. Keys are numbered in this order;
`keys_of` says which of them a holder is sent, and all else about who holds what follows from that.
Nothing outside of this module asks which format a round has.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import ClassVar, Final

import numpy as np

from security.secret_sharing import cnf, seeded
from security.secret_sharing.expansion import Expansion
from security.secret_sharing.field import MersenneField, Words
from security.secret_sharing.threshold import Threshold
from security.shared_round.terms.parameter_facts import ShareFormat


class SharingScheme(ABC):
    """A format among the holders of one threshold.

    Attributes:
        threshold: (t, n).
        first_piece: number of the first seeded piece.
        names_pieces: a header names the key of every piece, so that all who hold one hold the same.
        commits_to_text: a header commits to the whole ciphertext of a body rather than to its tags:
            GCM tags do not commit to a text, and several holders must have the same one.
        has_consistency_mask: shares that are explicit at several holders are checked to be those of
            one vector, under a mask.
    """

    first_piece: ClassVar[int]
    names_pieces: ClassVar[bool]
    commits_to_text: ClassVar[bool]
    has_consistency_mask: ClassVar[bool]

    def __init__(self, threshold: Threshold) -> None:
        """Take the scheme."""
        self.threshold = threshold

    @property
    @abstractmethod
    def num_seeds(self) -> int:
        """Seeded pieces of one vector."""

    @property
    @abstractmethod
    def num_bodies(self) -> int:
        """Explicit vectors that a device uploads."""

    @property
    def share_scale(self) -> int:
        """Integer that the words of all shares are multiplied by."""
        return 1

    @abstractmethod
    def keys_of(self, holder: int) -> tuple[int, ...]:
        """List the keys that a holder is sent, ascending.

        Raises:
            SharingError: if there is no such holder.
        """

    @abstractmethod
    def explicit(
        self, field: MersenneField, secret: Words, expansions: Sequence[Expansion], start: int
    ) -> list[memoryview]:
        """Compute what of every body begins at word `start`, as the bytes to seal.

        Args:
            field: of the words.
            secret: (count,), of the vector from `start` on.
            expansions: of the seeds, in order.
            start: index of the first word.
        """

    @abstractmethod
    def share(self, field: MersenneField, holder: int, pieces: Mapping[int, Words]) -> Words:
        """Make a holder's Shamir share, times `share_scale`, of its pieces by their numbers."""

    def body_of(self, holder: int) -> int | None:
        """Tell which body a holder gets, from 0; None: it gets none, or there is no such holder."""
        if not 1 <= holder <= self.threshold.holders:
            return None
        bodies = [key - self.num_seeds for key in self.keys_of(holder) if key >= self.num_seeds]
        return bodies[0] if bodies else None

    def piece(self, key: int) -> int:
        """Tell which piece a key belongs to."""
        return self.first_piece + key


class ShamirSeeded(SharingScheme):
    """Shamir shares: t - 1 holders have seeds of theirs, each other one a body."""

    first_piece = 1
    names_pieces = False
    commits_to_text = False
    has_consistency_mask = True

    @property
    def num_seeds(self) -> int:
        """One for each of the first holders."""
        return self.threshold.threshold - 1

    @property
    def num_bodies(self) -> int:
        """One for each of the others."""
        return self.threshold.holders - self.num_seeds

    def keys_of(self, holder: int) -> tuple[int, ...]:
        """Give the holder's one key."""
        self.threshold.check_holder(holder)
        return (holder - 1,)

    def explicit(
        self, field: MersenneField, secret: Words, expansions: Sequence[Expansion], start: int
    ) -> list[memoryview]:
        """Extrapolate the polynomial through the secret and the seeded shares.

        Cost: 4 ns a word of the secret with (3, 5), where it is compiled.
        """
        shares = np.empty((self.num_bodies, len(secret)), dtype=field.wire_dtype)
        seeded.share_chunk(self.threshold, secret, expansions, start, shares)
        return [memoryview(share).cast("B") for share in shares]

    def share(self, field: MersenneField, holder: int, pieces: Mapping[int, Words]) -> Words:
        """Give the one piece, which is the share."""
        del field
        return pieces[holder]


class CnfSeeded(SharingScheme):
    """Pieces that add up to the secret, each with all but t - 1 holders: one body for all of them.

    Shares are linear in the pieces, times a scale that keeps their weights whole.
    """

    first_piece = 0
    names_pieces = True
    commits_to_text = True
    has_consistency_mask = False

    @property
    def num_seeds(self) -> int:
        """All pieces but the last."""
        return self.threshold.num_pieces - 1

    @property
    def num_bodies(self) -> int:
        """One, of the last piece."""
        return 1

    @property
    def share_scale(self) -> int:
        """What makes all weights of pieces whole."""
        return cnf.conversion_scale(self.threshold)

    def keys_of(self, holder: int) -> tuple[int, ...]:
        """Give the keys of all pieces that the holder has."""
        return self.threshold.pieces_of(holder)

    def explicit(
        self, field: MersenneField, secret: Words, expansions: Sequence[Expansion], start: int
    ) -> list[memoryview]:
        """Subtract all seeded pieces from the secret."""
        others = _expanded(expansions, start, len(secret))
        return [memoryview(field.to_wire(cnf.explicit_piece(field, secret, others)))]

    def share(self, field: MersenneField, holder: int, pieces: Mapping[int, Words]) -> Words:
        """Weigh the pieces and add them up: 20 ns a word with (3, 5)."""
        return cnf.convert(field, self.threshold, holder, pieces)


FORMATS: Final[Mapping[ShareFormat, type[SharingScheme]]] = {
    ShareFormat.SHAMIR_SEEDED: ShamirSeeded,
    ShareFormat.CNF_SEEDED: CnfSeeded,
}


@cache
def sharing_scheme(share_format: ShareFormat, threshold: Threshold) -> SharingScheme:
    """Make the scheme of a round, by the name that its parameters give it."""
    return FORMATS[share_format](threshold)


def _expanded(expansions: Sequence[Expansion], start: int, count: int) -> Iterator[Words]:
    """Yield the words of each seed, in one buffer: a new one each would cost as much again."""
    words = np.empty(count, np.uint64)
    for expansion in expansions:
        expansion.read_into(words, start)
        yield words
