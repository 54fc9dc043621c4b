"""How far one device can move what an aggregation rule adds up, in units of the clip norm C.

Neighbours differ in one row, which is zero in one of them; all rows are within C; their number n is
the same and no secret. A rule is taken as a sum that noise is added to and that is then divided by
a number that does not depend on the rows. Rules are known by their names.

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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from privacy.errors import PrivacyError


class SensitivityError(PrivacyError):
    """A rule that one device may move too far for noise to hide it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleShape:
    """A rule and the numbers its sensitivity depends on.

    Attributes:
        rule: its name, as in `aggregators.registry` or, on shares, `aggregators.shared_selection`.
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
        if 2 * self.num_trimmed >= self.num_updates:
            message = f"trim={self.num_trimmed} must satisfy 2 * trim < n={self.num_updates}"
            raise PrivacyError(message)

    @property
    def num_selected(self) -> int:
        """How many rows a rule adds up that chooses among them."""
        return self.num_to_select or self.num_updates - self.num_byzantine

    @property
    def num_trimmed(self) -> int:
        """How many values trimmed-mean drops at either end; 0 for other rules."""
        if self.rule != "trimmed-mean":
            return 0
        return self.num_byzantine if self.trim is None else self.trim


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSensitivity:
    """How far one device moves a sum, and what the sum is divided by.

    Attributes:
        factor: the L2 sensitivity of the sum over C; above 0.
        num_terms: what the rule divides the sum by when all `num_updates` rows come in; from 1.
    """

    factor: float
    num_terms: int


def rule_sensitivity(shape: RuleShape) -> RuleSensitivity:
    """Bound how far one device moves what a rule adds up.

    Raises:
        SensitivityError: if no bound is known that noise could be added for; it says why.

    Guarantees:
        No two neighbours' sums differ by more than `factor` times C.
        Not lower for fewer updates than `num_updates`.
    """
    reason = rule_refusal(shape)
    if reason is not None:
        raise SensitivityError(reason)
    return _BOUNDS[shape.rule](shape)


def private_sum_sensitivity(
    rule: str, *, num_updates: int, num_byzantine: int, num_to_select: int | None
) -> float:
    """Bound how far one device moves the sum of a round in which so many updates can be.

    Returns:
        The factor of `rule_sensitivity` for multi-krum, and 1 for the rules that add up everything,
        as also where so few updates are no round: the rule itself refuses them.
    """
    selected = num_to_select or num_updates - num_byzantine
    if rule != "multi-krum" or not 1 <= selected <= num_updates:
        return 1.0
    return _equal_choice(num_updates, selected).factor


def rule_refusal(shape: RuleShape) -> str | None:
    """Say why no noise can hide one device in what a rule gives; None: it can."""
    rule, *steps = reversed(shape.rule.split("+"))
    if steps:
        return (
            f"rule={shape.rule!r} cannot be released privately: its first steps change every row by"
            f" what the others are; {_INSTEAD}"
        )
    if rule == "centered-clipping" and shape.radius is None:
        return (
            f"rule={rule!r} cannot be released privately without clipping-radius: the median"
            f" distance, its default, depends on every row; {_INSTEAD}"
        )
    if rule in _BOUNDS:
        return None
    why = _REFUSALS.get(rule, "no bound is known for it")
    return f"rule={rule!r} cannot be released privately: {why}; {_INSTEAD}"


def known_rules() -> frozenset[str]:
    """Name the rules that have a bound or a reason of their own for having none."""
    return frozenset(_BOUNDS) | frozenset(_REFUSALS)


def _equal_choice(num_updates: int, num_selected: int) -> RuleSensitivity:
    swapped = num_updates - num_selected
    return RuleSensitivity(
        factor=float(min(2 * swapped + 1, 2 * num_selected)), num_terms=num_selected
    )


def _without_f(shape: RuleShape) -> RuleSensitivity:
    return _equal_choice(shape.num_updates, shape.num_updates - shape.num_byzantine)


def _median(shape: RuleShape) -> RuleSensitivity:
    return RuleSensitivity(factor=1.0, num_terms=1 if shape.num_updates % 2 else 2)


def _centered_clipping(shape: RuleShape) -> RuleSensitivity:
    reach = 1.0 if shape.radius is None else min(1.0, 2 * shape.radius)
    return RuleSensitivity(factor=shape.max_steps * reach, num_terms=shape.num_updates)


_INSTEAD: Final = "choose mean or multi-krum"

_BOUNDS: Final[Mapping[str, Callable[[RuleShape], RuleSensitivity]]] = {
    "mean": lambda shape: RuleSensitivity(factor=1.0, num_terms=shape.num_updates),
    "multi-krum": lambda shape: _equal_choice(shape.num_updates, shape.num_selected),
    "krum": lambda shape: _equal_choice(shape.num_updates, 1),
    "minimum-diameter": _without_f,
    "dnc": _without_f,
    "monna": lambda shape: RuleSensitivity(
        factor=2.0 if shape.num_byzantine else 1.0,
        num_terms=shape.num_updates - shape.num_byzantine,
    ),
    "trimmed-mean": lambda shape: RuleSensitivity(
        factor=1.0, num_terms=shape.num_updates - 2 * shape.num_trimmed
    ),
    "median": _median,
    "centered-clipping": _centered_clipping,
}

_REFUSALS: Final[Mapping[str, str]] = {
    "aegis": "reputations carry one device's update into the weights of all later rounds",
    "agmami": "its weights depend on what every update's model answers",
    "auto-geometric-median": "one update can tip which of two groups it leaves out",
    "bulyan": "one update changes every later choice, and then every coordinate's choice of values",
    "caf": "every row's weight depends on the direction in which all of them vary most",
    "distance-outliers": (
        "one update moves the limit for all, so that up to half of the others come or go with it"
    ),
    "fedmi": "its weights depend on what every update's model answers",
    "flame": "one update changes who is admitted and the norm that all are shrunk to",
    "fltrust": "it divides by the sum of trusts, which may be next to nothing without one device",
    "geometric-median": (
        "one update that tips a balance moves the result by up to C, however many there are"
    ),
    "hybrid": "one update moves the median norm, to which all others are clipped",
    "mean-around-median": (
        "one update that moves a median changes which values count in that coordinate"
    ),
    "norm-threshold": "one update moves the median norm, and with it who is left out",
    "sign-guard": "one update changes who makes up the largest cluster",
}
