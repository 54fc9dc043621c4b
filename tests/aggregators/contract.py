"""What it takes to run any registered rule: rows, and all that a rule may know beside them.

The traits of a rule are statements about rows together with every vector of the context: where the
rows are moved, scaled or permuted, so are the server's own update and the last aggregate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np

from aggregators.capacity import least_updates
from aggregators.config import AggregatorConfig
from aggregators.engines.engine import LOCAL, Engine
from aggregators.pipeline import make_rule
from aggregators.registry import RULES, traits_of
from aggregators.rule import Context, RuleResult
from tests.aggregators.matrices import Floats, Matrix, honest_rows, same_bits

EVERY_RULE: Final = tuple(sorted(RULES))
PIPELINES: Final = (
    "nnm+trimmed-mean",
    "nnm+krum",
    "nnm+geometric-median",
    "arc+nnm+median",
    "clip+mean",
    "bucketing+median",
    "bucketing+geometric-median",
)
EVERYTHING: Final = (*EVERY_RULE, *PIPELINES)

_NUM_PROBES: Final = 6
_NUM_OUTPUTS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """Rows and what a server might know beside them.

    The model under training answers a probe sample with `bias + readout x` for its parameters x.

    Attributes:
        rows: (n, d).
        root_update: (d,).
        center: (d,).
        weights: (n,).
        trust: (n,).
        keys: (n,).
        readout: (S, K, d).
        bias: (S, K).
    """

    rows: Matrix
    root_update: Matrix
    center: Matrix
    weights: Floats
    trust: Floats
    keys: tuple[str, ...]
    readout: Floats
    bias: Floats

    def context(self, *names: str, seed: int = 0) -> Context:
        """Tell a rule the sample counts and what is named, no more."""
        known: dict[str, Any] = {
            "trust": self.trust,
            "root_update": self.root_update,
            "center": self.center,
            "keys": self.keys,
        }
        if "probe_outputs" in names:
            known["probe_outputs"] = np.array([self._answers(row) for row in self.rows])
        return Context(weights=self.weights, seed=seed, **{name: known[name] for name in names})

    def _answers(self, row: Matrix) -> Floats:
        # Row by row: what a model answers does not depend on the other models.
        answers: Floats = self.bias + (self.readout * row).sum(axis=2)
        return answers

    def with_rows(self, rows: Matrix) -> "Case":
        """Replace the values of the rows."""
        return replace(self, rows=rows)

    def permuted(self, order: Sequence[int]) -> "Case":
        """Put the rows, and what is known of each, in another order."""
        return replace(
            self,
            rows=self.rows[order],
            weights=self.weights[order],
            trust=self.trust[order],
            keys=tuple(self.keys[row] for row in order),
        )

    def moved(self, shift: float) -> "Case":
        """Add a number to every coordinate."""
        step = np.float32(shift)
        return replace(
            self,
            rows=self.rows + step,
            root_update=self.root_update + step,
            center=self.center + step,
        )

    def scaled(self, factor: float) -> "Case":
        """Multiply every coordinate."""
        step = np.float32(factor)
        return replace(
            self,
            rows=self.rows * step,
            root_update=self.root_update * step,
            center=self.center * step,
        )

    def with_columns(self, order: Sequence[int]) -> "Case":
        """Put the coordinates in another order; the model reads them as before."""
        return replace(
            self,
            rows=self.rows[:, order],
            root_update=self.root_update[order],
            center=self.center[order],
            readout=self.readout[:, :, order],
        )

    def repeated(self, times: int) -> "Case":
        """Send every row several times, by devices of their own."""
        return case_of(
            np.repeat(self.rows, times, axis=0),
            root_update=self.root_update,
            center=self.center,
            readout=self.readout,
            bias=self.bias,
        )


def case_of(rows: Matrix, *, is_uneven: bool = False, seed: int = 0, **known: Any) -> Case:
    """Surround rows with what a server might know.

    Args:
        rows: (n, d).
        is_uneven: sample counts and trust differ between devices.
        seed: decides what is not given.
        known: fields of `Case` that are given.
    """
    num_rows, dim = rows.shape
    generator = np.random.default_rng(seed)
    drawn: dict[str, Any] = {
        "root_update": honest_rows(seed, 1, dim)[0],
        "center": honest_rows(seed + 1, 1, dim)[0],
        "weights": np.ones(num_rows),
        "trust": np.ones(num_rows),
        "keys": tuple(f"device-{row:04}" for row in range(num_rows)),
        "readout": generator.standard_normal((_NUM_PROBES, _NUM_OUTPUTS, dim)) / np.sqrt(dim),
        "bias": generator.standard_normal((_NUM_PROBES, _NUM_OUTPUTS)),
    }
    if is_uneven:
        drawn["weights"] = generator.integers(1, 1000, num_rows).astype(np.float64)
        drawn["trust"] = generator.random(num_rows)
    return Case(rows=rows, **(drawn | known))


def known_to(rule: str) -> tuple[str, ...]:
    """Name everything a rule could be told."""
    names = tuple(field.name for field in fields(Context))
    left_out = {"weights", "seed", "state"}
    if "bucketing" in rule:
        left_out |= {"probe_outputs", "keys", "trust"}
    return tuple(name for name in names if name not in left_out)


def least_rows(rule: str, num_byzantine: int) -> int:
    """Count the rows a rule needs for f."""
    return least_updates(AggregatorConfig(rule=rule, num_malicious_nodes=num_byzantine))


def most_byzantine(rule: str, num_rows: int) -> int:
    """Find the largest f a rule accepts for n rows, and at most the largest minority."""
    most = (num_rows - 1) // 2
    return max(f for f in range(most + 1) if least_rows(rule, f) <= num_rows)


def apply(
    rule: str,
    rows: Matrix | Case,
    *,
    num_byzantine: int = 1,
    knows: Sequence[str] | None = None,
    engine: Engine = LOCAL,
    **settings: Any,
) -> RuleResult:
    """Run a rule.

    Args:
        rule: a name, or a pipeline.
        rows: rows, or a case.
        num_byzantine: f.
        knows: what the rule is told; None: what it cannot work without.
        engine: makes the rows.
        settings: of `AggregatorConfig`.
    """
    case = rows if isinstance(rows, Case) else case_of(rows)
    config = AggregatorConfig(rule=rule, num_malicious_nodes=num_byzantine, **settings)
    names = traits_of(rule).needs if knows is None else knows
    return make_rule(config)(engine.rows(list(case.rows)), case.context(*names))


def same_result(first: RuleResult, second: RuleResult, order: Sequence[int] | None = None) -> bool:
    """Tell whether `second` is, bit for bit, the result of the rows of `first` in an order."""
    places = list(range(len(first.weights))) if order is None else list(order)
    if (first.scores is None) != (second.scores is None):
        return False
    same_scores = (
        first.scores is None
        or second.scores is None
        or same_bits(first.scores[places], second.scores)
    )
    return (
        same_scores
        and same_bits(first.vector, second.vector)
        and same_bits(first.weights[places], second.weights)
        and np.array_equal(first.selected[places], second.selected)
    )


def by_value(rows: Matrix, result: RuleResult) -> list[tuple[bytes, ...]]:
    """List what became of each row, sorted by the rows' values.

    Of rows that are equal, a rule may select any: this does not tell which.
    """
    parts = [result.weights, result.selected]
    if result.scores is not None:
        parts.append(result.scores)
    outcomes = zip(*(part.tolist() for part in parts), strict=True)
    return sorted(
        (row.tobytes(), repr(outcome).encode()) for row, outcome in zip(rows, outcomes, strict=True)
    )
