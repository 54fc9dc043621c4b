"""What a rule or a step before it declares about itself; needs no array to be read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aggregators.errors import AggregationError, TooFewUpdatesError
from privacy.rule_sensitivity import SumBound

if TYPE_CHECKING:
    from aggregators.config import AggregatorConfig


MIN_RANKABLE_DENSITY: Final = 0.5
"""Least share of stored values at which rules that rank the values of a coordinate make sense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How many Byzantine rows f a rule tolerates among n: n >= per_byzantine * f + base."""

    per_byzantine: int
    base: int

    def require(self, rule: str, num_rows: int, num_byzantine: int) -> None:
        """Refuse an n or an f the rule cannot work with.

        Raises:
            AggregationError: if `num_byzantine` is negative.
            TooFewUpdatesError: if there are too few rows; it says which numbers would do.
        """
        if num_byzantine < 0:
            message = f"num_byzantine={num_byzantine} of {rule} must be at least 0"
            raise AggregationError(message)
        least = self.least(num_byzantine)
        if num_rows < least:
            message = f"num_byzantine={num_byzantine} of {rule} must satisfy n >= {self}"
            message += f", got n={num_rows}: at least {least} updates would do"
            if num_rows >= self.base:
                message += f", or num_byzantine of at most {self.most(num_rows)}"
            raise TooFewUpdatesError(message)

    def least(self, num_byzantine: int) -> int:
        """Return the least n that f allows."""
        return self.per_byzantine * num_byzantine + self.base

    def most(self, num_rows: int) -> int:
        """Return the largest f that n rows allow; negative: none."""
        return (num_rows - self.base) // self.per_byzantine

    def __str__(self) -> str:
        """Write the right-hand side of the constraint."""
        return f"{self.per_byzantine} * num_byzantine + {self.base}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a rule declares about itself; the contract suite of the tests checks each.

    Whoever has to know what a rule can do asks here: no other place names rules.

    Attributes:
        breakdown: the largest number of arbitrary rows among n that leaves the result within a
            bound set by the others, from n and f; 0 for rules that are not robust.
        sensitivity: how far one device moves what the rule adds up; or, in words, why no bound is
            known that noise could be added for.
        tolerance: the (n, f) it accepts; None: it takes no f and is not robust, or its breakdown
            does not depend on one.
        least: the updates it needs by its settings, where they count beside f; None: as many as
            `tolerance` says.
        translation: F(x + c) = F(x) + c; here and below a root update and a centre change with
            the rows.
        scale: F(a x) = a F(x) for a > 0.
        coordinates: permuting coordinates permutes the result, where no two rows tie by chance.
        needs: names of `Context` fields it cannot work without.
        is_linear: the result is a weighted mean of all rows, and no row decides another's weight:
            a row of zeros adds to the sum what no row does.
        is_private_sum: the result is the sum, over a number, of all rows or of rows that it
            selects, and noise of a useful size can hide one device in that sum.
        is_single: the result is one of the rows.
        ranks_values: it ranks the values of each coordinate, so that the zeros of sparse rows
            would outvote the others.
        compares_rows: rows count by where they lie among the others, which noise that each device
            added to its own would hide.
        picks_by_distances: on shares it picks members of a round by their opened distances: its
            module has a function `pick` beside `apply`.
        knows_devices: it has to know each row's device or model, so nothing may merge rows first.
        scales_rows: it shortens rows before it reads them; means of sparse rows cannot be.
        starts_from_center: it uses `Context.center`, the aggregate of the round before.
        memory: name of the dataclass in its module that it returns as state and wants back in the
            next round, made of JSON values; "": it remembers nothing.
        stands_in: it may take the place of a rule for which too few updates arrived.
    """

    breakdown: Callable[[int, int], int]
    sensitivity: SumBound | str
    tolerance: Tolerance | None = None
    least: "Callable[[AggregatorConfig], int] | None" = None
    translation: bool = True
    scale: bool = True
    coordinates: bool = True
    needs: tuple[str, ...] = ()
    is_linear: bool = False
    is_private_sum: bool = False
    is_single: bool = False
    ranks_values: bool = False
    compares_rows: bool = True
    picks_by_distances: bool = False
    knows_devices: bool = False
    scales_rows: bool = False
    starts_from_center: bool = False
    memory: str = ""
    stands_in: bool = False

    @property
    def works_on_shares(self) -> bool:
        """Whether a shared round can open what it adds up without showing a single update."""
        return self.is_linear or self.picks_by_distances


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTraits:
    """What a step before a rule declares about itself.

    Attributes:
        function: its name in `aggregators.pipeline`.
        tolerance: the (n, f) it accepts; None: any.
        scales_rows: it shortens rows by their norms, so that moving all rows changes the result.
        mixes_rows: it makes rows that are means of those before.
        merges_rows: fewer of them.
    """

    function: str
    tolerance: Tolerance | None = None
    scales_rows: bool = False
    mixes_rows: bool = False
    merges_rows: bool = False
