"""The rules and steps by name, and what each can do: one row a rule.

A rule `some-name` is the module `aggregators.rules.some_name` with a function `apply`, loaded when
it is first made: who only asks what a rule can do reads no array code.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from aggregators.errors import AggregationError
from aggregators.traits import StepTraits, Tolerance, Traits
from privacy import rule_sensitivity as bounds

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from _typeshed import DataclassInstance
    from numpy.typing import NDArray

    from aggregators.config import AggregatorConfig
    from aggregators.rows.rows import Rows
    from aggregators.rule import Context, RuleResult

Apply: TypeAlias = "Callable[[Rows, Context, AggregatorConfig], RuleResult]"
Pick: TypeAlias = "Callable[[NDArray[np.int64], int, int | None], Sequence[int]]"
"""From (n, n) squared distances, f and m (None: the rule's own) to the places that are picked."""


def apply_of(name: str) -> "Apply":
    """Load the function that is the rule of this name."""
    return cast("Apply", _module(name).apply)


def make_pick(name: str) -> "Pick":
    """Find the function by which a rule picks by distances.

    Raises:
        AggregationError: if no rule has such a name, or it does not.
    """
    if not traits_of(name).picks_by_distances:
        message = f"rule={name!r} does not pick by distances"
        raise AggregationError(message)
    return cast("Pick", _module(name).pick)


def memory_of(name: str) -> "type[DataclassInstance] | None":
    """Find the type of what a rule remembers; None: it remembers nothing.

    Raises:
        AggregationError: if no rule has such a name.
    """
    memory = traits_of(name).memory
    return cast("type[DataclassInstance]", getattr(_module(name), memory)) if memory else None


def traits_of(rule: str) -> Traits:
    """Find what a rule declares; of a pipeline, what its steps leave of that.

    Raises:
        AggregationError: if no rule or step has such a name.
    """
    steps, name = parted(rule)
    traits = RULES[name]
    if not steps:
        return traits
    declared = [STEPS[step] for step in steps]
    return replace(
        traits,
        sensitivity="its first steps change every row by what the others are",
        translation=traits.translation and not any(step.scales_rows for step in declared),
        # Which rows are merged is drawn by their place in the lexicographic order.
        coordinates=traits.coordinates and not any(step.merges_rows for step in declared),
        is_linear=False,
        is_private_sum=False,
        is_single=False,
        compares_rows=True,
        picks_by_distances=False,
        stands_in=False,
    )


def parted(rule: str) -> tuple[list[str], str]:
    """Part a configured rule into the names of its steps and the rule that it ends in.

    Raises:
        AggregationError: if no rule or step has such a name.
    """
    *steps, name = rule.split("+")
    for step in steps:
        if step not in STEPS:
            message = f"rule={rule!r}: step {step!r} must be one of {_listed(STEPS)}"
            raise AggregationError(message)
    if name not in RULES:
        message = f"rule={name!r} must be one of {_listed(RULES)}"
        if steps:
            message = f"rule={rule!r}: {message}"
        raise AggregationError(message)
    return steps, name


def require_tolerated(name: str, num_rows: int, num_byzantine: int) -> None:
    """Refuse an n or an f that a rule or step cannot work with; they call it themselves.

    Raises:
        AggregationError: if `num_byzantine` is negative.
        TooFewUpdatesError: if there are too few rows.
    """
    tolerance = (RULES.get(name) or STEPS[name]).tolerance
    if tolerance is not None:
        tolerance.require(name, num_rows, num_byzantine)


def rules_that(can: Callable[[Traits], bool]) -> tuple[str, ...]:
    """Name the rules whose traits say so."""
    return tuple(name for name, traits in RULES.items() if can(traits))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _module(name: str) -> ModuleType:
    return import_module(f"aggregators.rules.{name.replace('-', '_')}")


def _none(_num_rows: int, _num_byzantine: int) -> int:
    return 0


def _f(_num_rows: int, num_byzantine: int) -> int:
    return num_byzantine


def _minority(num_rows: int, _num_byzantine: int) -> int:
    return (num_rows - 1) // 2


def _least_to_select(config: "AggregatorConfig") -> int:
    least = _KRUM.least(config.num_malicious_nodes)
    return max(least, (config.num_to_select or 1) + config.num_malicious_nodes)


def _least_to_trim(config: "AggregatorConfig") -> int:
    trim = config.num_malicious_nodes if config.trim is None else config.trim
    return _HONEST_MAJORITY.least(trim)


_HONEST_MAJORITY: Final = Tolerance(per_byzantine=2, base=1)
_KRUM: Final = Tolerance(per_byzantine=2, base=3)

RULES: Final[dict[str, Traits]] = {
    "aegis": Traits(
        # The cleaned median is taken over half of the rows at least, and must have an honest
        # majority.
        breakdown=lambda num_rows, _: ((num_rows + 1) // 2 - 1) // 2,
        sensitivity="reputations carry one device's update into the weights of all later rounds",
        translation=False,
        ranks_values=True,
        knows_devices=True,
        memory="AegisState",
    ),
    "agmami": Traits(
        # Clipping bounds every row by the norms of the others as long as they are the majority.
        breakdown=_minority,
        sensitivity="its weights depend on what every update's model answers",
        translation=False,
        scale=False,
        needs=("probe_outputs",),
        knows_devices=True,
    ),
    "auto-geometric-median": Traits(
        breakdown=_minority,
        sensitivity="one update can tip which of two groups it leaves out",
    ),
    "bulyan": Traits(
        tolerance=Tolerance(per_byzantine=4, base=3),
        breakdown=_f,
        sensitivity=(
            "one update changes every later choice, and then every coordinate's choice of values"
        ),
        # Late selections tie on any data; ties are broken by value, which the first columns decide.
        coordinates=False,
        ranks_values=True,
    ),
    "caf": Traits(
        tolerance=_HONEST_MAJORITY,
        breakdown=_f,
        sensitivity=("every row's weight depends on the direction in which all of them vary most"),
    ),
    "centered-clipping": Traits(
        breakdown=_minority,
        sensitivity=bounds.of_clipped_steps,
        # The centre does not move with the rows.
        translation=False,
        starts_from_center=True,
    ),
    "distance-outliers": Traits(
        breakdown=_minority,
        sensitivity=(
            "one update moves the limit for all, so that up to half of the others come or go"
            " with it"
        ),
        picks_by_distances=True,
    ),
    "dnc": Traits(
        tolerance=_HONEST_MAJORITY,
        # Attackers in several directions hide behind the farthest one; those that spare the sampled
        # coordinates are not seen at all.
        breakdown=_none,
        sensitivity=bounds.of_all_but_f,
        # The sample is drawn by position.
        coordinates=False,
    ),
    "fedmi": Traits(
        # A model of enormous weights can answer as usual, and kept rows are averaged as they are.
        breakdown=_none,
        sensitivity="its weights depend on what every update's model answers",
        translation=False,
        scale=False,
        needs=("probe_outputs",),
        knows_devices=True,
    ),
    "flame": Traits(
        breakdown=_minority,
        sensitivity="one update changes who is admitted and the norm that all are shrunk to",
        # Cosines and norms are measured from the origin.
        translation=False,
    ),
    "fltrust": Traits(
        breakdown=lambda num_rows, _: num_rows - 1,
        sensitivity=(
            "it divides by the sum of trusts, which may be next to nothing without one device"
        ),
        translation=False,
        needs=("root_update",),
    ),
    "geometric-median": Traits(
        breakdown=_minority,
        sensitivity=(
            "one update that tips a balance moves the result by up to C, however many there are"
        ),
    ),
    "hybrid": Traits(
        tolerance=_HONEST_MAJORITY,
        breakdown=_f,
        sensitivity="one update moves the median norm, to which all others are clipped",
        translation=False,
        scales_rows=True,
        ranks_values=True,
    ),
    "krum": Traits(
        tolerance=_KRUM,
        breakdown=_f,
        sensitivity=bounds.of_one,
        is_single=True,
    ),
    "mean": Traits(
        breakdown=_none,
        sensitivity=bounds.of_all,
        is_linear=True,
        is_private_sum=True,
        compares_rows=False,
    ),
    "mean-around-median": Traits(
        tolerance=_HONEST_MAJORITY,
        breakdown=_f,
        sensitivity="one update that moves a median changes which values count in that coordinate",
        ranks_values=True,
        compares_rows=False,
    ),
    "median": Traits(
        breakdown=_minority,
        sensitivity=bounds.of_middle,
        ranks_values=True,
        compares_rows=False,
        stands_in=True,
    ),
    "minimum-diameter": Traits(
        tolerance=_HONEST_MAJORITY,
        breakdown=_f,
        sensitivity=bounds.of_all_but_f,
        # Subsets tie on any data; ties are broken by value, which the first columns decide.
        coordinates=False,
    ),
    "monna": Traits(
        tolerance=_HONEST_MAJORITY,
        breakdown=_f,
        sensitivity=bounds.of_nearest_to_pivot,
        needs=("root_update",),
    ),
    "multi-krum": Traits(
        tolerance=_KRUM,
        least=_least_to_select,
        breakdown=_f,
        sensitivity=bounds.of_selected,
        is_private_sum=True,
        picks_by_distances=True,
        stands_in=True,
    ),
    "norm-threshold": Traits(
        breakdown=_minority,
        sensitivity="one update moves the median norm, and with it who is left out",
        translation=False,
    ),
    "sign-guard": Traits(
        # Clipping bounds every row by the median norm, an honest one as long as most rows are.
        breakdown=_minority,
        sensitivity="one update changes who makes up the largest cluster",
        translation=False,
        # Which coordinates are sampled depends on where they stand.
        coordinates=False,
    ),
    "trimmed-mean": Traits(
        tolerance=_HONEST_MAJORITY,
        least=_least_to_trim,
        breakdown=_f,
        sensitivity=bounds.of_trimmed,
        ranks_values=True,
        compares_rows=False,
        stands_in=True,
    ),
}

STEPS: Final[dict[str, StepTraits]] = {
    "arc": StepTraits(
        function="adaptive_clip",
        tolerance=_HONEST_MAJORITY,
        scales_rows=True,
    ),
    "bucketing": StepTraits(function="bucket", mixes_rows=True, merges_rows=True),
    "clip": StepTraits(function="clip", scales_rows=True),
    "nnm": StepTraits(function="mix", tolerance=_HONEST_MAJORITY, mixes_rows=True),
}
"""Pre-aggregations: adaptive clipping, bucketing, clipping to `norm_factor` median norms,
nearest-neighbour mixing."""
