"""How far one device can move what an aggregation rule adds up, in units of the clip norm C.

Neighbours differ in one row, which is zero in one of them; all rows are within C; their number n is
the same and no secret. A rule is taken as a sum that noise is added to and that is then divided by
a number that does not depend on the rows. Which rule has which bound is in
`aggregators.registry`.

The bounds:
- mean: sum_i w_i x_i with weights in 0..1 moves by w_i |x_i|: 1.
- Rules that add up exactly m of n rows with equal weights, chosen in whatever way (multi-krum,
  krum, minimum-diameter, dnc): let T and T' be the choices and a = |T \\ T'| = |T' \\ T|, which is
  at most min(m, n - m). Rows in both cancel, but for the device's own.
  If the device is in both, a is at most m - 1 and 2 a + 1 rows are left; if it is in one or in
  neither, 2 a or fewer. So min(2 (n - m) + 1, 2 m), which is 2 f + 1 where m = n - f > f.
  The same holds if the device's row is absent from one of the two rather than zero, n being the
  larger number: with m = n - f, at most f + 1 rows are on one side and f on the other.
- monna: the scores of others do not depend on the device, so at most one row changes places
  with its own: 2, and 1 with f = 0.
- trimmed-mean, median: with the other values y of a coordinate in order, the sum of the middle
  n - 2 b of n values is the sum of the middle n - 1 - 2 b of y plus the device's own value
  clamped to two of y. Clamping brings values closer together, so every coordinate moves by no
  more than the device's own, and the sum by no more than |x_i|: 1. The sum that a median divides
  has one term, or two.
- centered-clipping with a fixed radius tau: a step moves the centre v by the mean of
  clip_tau(x_i - v). Clipping is the projection on a ball: it brings vectors closer together, and
  so does v + clip_tau(x - v) two centres. So each of L steps adds at most min(|x_i|, 2 tau) to the
  sum: L min(1, 2 tau / C).

For trimmed-mean, median and centered-clipping, a refused row must enter as zeros.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from privacy.errors import PrivacyError


class SensitivityError(PrivacyError):
    """A rule that one device may move too far for noise to hide it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleShape:
    """A rule and the numbers its sensitivity depends on.

    Attributes:
        rule: its name, as in `aggregators.registry`.
        num_updates: n, the most rows a round can have; from 1.
        num_byzantine: f; from 0.
        num_to_select: m of multi-krum, from 1 to n; None: n - f.
        trim: b of trimmed-mean; from 0. None: f.
        radius: tau / C of centered-clipping, above 0; None: it depends on the rows.
        max_steps: L of centered-clipping; from 1.

    Raises:
        PrivacyError: if a number is out of range.
    """

    rule: str
    num_updates: int
    num_byzantine: int = 0
    num_to_select: int | None = None
    trim: int | None = None
    radius: float | None = None
    max_steps: int = 1

    def __post_init__(self) -> None:
        most = {"num_to_select": self.num_updates, "num_byzantine": self.num_updates - 1}
        for name, least in (
            ("num_updates", 1),
            ("num_byzantine", 0),
            ("num_to_select", 1),
            ("trim", 0),
            ("max_steps", 1),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most.get(name, value):
                message = f"{name}={value} must be at least {least}"
                message += f" and at most {most[name]}" if name in most else ""
                raise PrivacyError(message)
        if self.radius is not None and not self.radius > 0:
            message = f"radius={self.radius} must be above 0"
            raise PrivacyError(message)

    @property
    def num_selected(self) -> int:
        """How many rows a rule adds up that chooses among them."""
        return self.num_to_select or self.num_updates - self.num_byzantine


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSensitivity:
    """How far one device moves a sum, and what the sum is divided by.

    Attributes:
        factor: the L2 sensitivity of the sum over C; above 0.
        num_terms: what the rule divides the sum by when all `num_updates` rows come in; from 1.
    """

    factor: float
    num_terms: int


SumBound: TypeAlias = Callable[[RuleShape], RuleSensitivity]
"""Bounds how far one device moves what a rule of some shape adds up."""


def of_all(shape: RuleShape) -> RuleSensitivity:
    """Bound a mean of all rows."""
    return RuleSensitivity(factor=1.0, num_terms=shape.num_updates)


def of_selected(shape: RuleShape) -> RuleSensitivity:
    """Bound a mean of `num_selected` rows, however they are chosen."""
    return _equal_choice(shape.num_updates, shape.num_selected)


def of_one(shape: RuleShape) -> RuleSensitivity:
    """Bound a single row, however it is chosen."""
    return _equal_choice(shape.num_updates, 1)


def of_all_but_f(shape: RuleShape) -> RuleSensitivity:
    """Bound a mean of n - f rows, however they are chosen."""
    return _equal_choice(shape.num_updates, shape.num_updates - shape.num_byzantine)


def of_nearest_to_pivot(shape: RuleShape) -> RuleSensitivity:
    """Bound a mean of the n - f rows nearest to a vector that no row decides."""
    return RuleSensitivity(
        factor=2.0 if shape.num_byzantine else 1.0,
        num_terms=shape.num_updates - shape.num_byzantine,
    )


def of_trimmed(shape: RuleShape) -> RuleSensitivity:
    """Bound a mean by coordinate without the `trim` values at either end.

    Raises:
        PrivacyError: if nothing would be left.
    """
    trim = shape.num_byzantine if shape.trim is None else shape.trim
    if 2 * trim >= shape.num_updates:
        message = f"trim={trim} must satisfy 2 * trim < n={shape.num_updates}"
        raise PrivacyError(message)
    return RuleSensitivity(factor=1.0, num_terms=shape.num_updates - 2 * trim)


def of_middle(shape: RuleShape) -> RuleSensitivity:
    """Bound a median by coordinate."""
    return RuleSensitivity(factor=1.0, num_terms=1 if shape.num_updates % 2 else 2)


def of_clipped_steps(shape: RuleShape) -> RuleSensitivity:
    """Bound steps towards rows that are clipped to a radius.

    Raises:
        SensitivityError: if there is no radius.
    """
    if shape.radius is None:
        message = "without clipping-radius the median distance, its default, depends on every row"
        raise SensitivityError(message)
    return RuleSensitivity(
        factor=shape.max_steps * min(1.0, 2 * shape.radius), num_terms=shape.num_updates
    )


def _equal_choice(num_updates: int, num_selected: int) -> RuleSensitivity:
    swapped = num_updates - num_selected
    return RuleSensitivity(
        factor=float(min(2 * swapped + 1, 2 * num_selected)), num_terms=num_selected
    )
