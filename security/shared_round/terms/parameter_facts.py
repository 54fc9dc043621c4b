"""The words and numbers that parameters of shared rounds are made of; needs no library.

Files name the words, messages the numbers. Device, coordinator and share holder all take both from
here.
"""

from enum import StrEnum
from typing import Final, Self

DEGRADED_GROUP_SIZE: Final = 8
"""Updates in each sum of a degraded round whose parameters name no group size."""

LEAST_MASK_SCALE: Final = 3
"""Noise over what checks open, in norm bounds: less shows more of an update."""
LEAST_WRAP_TESTS: Final = 40
"""Tests of a group: fewer let an update pass that goes around the field."""
LEAST_SKETCH_DIM: Final = 1024
"""Of the sketches in which distances and tests are made."""
LEAST_MEMBERS: Final = 2
"""Updates in a sum: one would be opened."""
ALL_MEMBERS: Final = "mean"
"""The rule of a round that sums all members; any other picks by opened distances."""


class Word(StrEnum):
    """A word in files; in messages the number of its place, from 1."""

    @property
    def number(self) -> int:
        """Its number in messages."""
        return 1 + list(type(self)).index(self)

    @classmethod
    def numbered(cls, number: int) -> Self:
        """Find the word of a number.

        Raises:
            ValueError: if no word has it.
        """
        words = list(cls)
        if not 1 <= number <= len(words):
            message = f"{number} is no {cls.__name__}"
            raise ValueError(message)
        return words[number - 1]


class ShareFormat(Word):
    """How an update is shared; `share_format` has what each one does."""

    SHAMIR_SEEDED = "shamir-seeded"
    CNF_SEEDED = "cnf-seeded"


class Checks(Word):
    """What is opened before the sum; each level includes those before it."""

    SUM = "sum"
    """Nothing: the round's devices are trusted."""
    NORM = "norm"
    """That no update is longer than the norm bound."""
    DISTANCES = "distances"
    """That, and how far the updates lie from each other."""

    def includes(self, other: "Checks") -> bool:
        """Tell whether this level opens at least as much."""
        return self.number >= other.number


class Degraded(Word):
    """What may be opened where the configured checks cannot be."""

    WAIT = "wait"
    GROUPED = "grouped"
    UNCHECKED = "unchecked"
    ABORT = "abort"
