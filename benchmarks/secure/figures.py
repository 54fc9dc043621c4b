"""A figure beside its target."""

from dataclasses import dataclass
from typing import Final, TypeAlias

Figures: TypeAlias = dict[str, object]

NO_TARGET: Final = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a figure must not exceed.

    Attributes:
        name: of the figure.
        figure: as measured, in the unit of `limit`.
        limit: the largest that is accepted.
        unit: of both; empty: a plain number.
    """

    name: str
    figure: float
    limit: float
    unit: str = ""

    @property
    def is_met(self) -> bool:
        return self.figure <= self.limit

    def __str__(self) -> str:
        return f"{self.name} <= {self.limit:g} {self.unit}".rstrip()


def judged(*targets: Target) -> Figures:
    """The columns that end a row: its targets, and which are met."""
    if not targets:
        return {"target": NO_TARGET, "met": NO_TARGET}
    missed = [target.name for target in targets if not target.is_met]
    return {
        "target": "; ".join(map(str, targets)),
        "met": f"no: {', '.join(missed)}" if missed else "yes",
    }


def rounded(value: float) -> float:
    """Four digits: more cannot be told from a measurement."""
    return float(f"{value:.4g}")
