"""Contradictions in the settings of a private task."""

from typing import TYPE_CHECKING, Final

from aggregators.private_rules import private_rules
from privacy.budget import MAX_RELEASES
from privacy.noisy_distances import comparison_problem
from server.config.contradictions import Contradiction, rule_traits

if TYPE_CHECKING:
    from server.config.task_config import TaskConfig

# In shared rounds norms are checked on shares, and noise of devices would fail the checks.
_NOISE_PLACES: Final = {"plain": ("central", "device"), "shared": ("holders",)}


def _noisy_rule_problem(task: "TaskConfig") -> str | None:
    """Say why the rule cannot work under the noise of devices, whatever the model.

    A multiplier that is still to be calibrated, and the size of the model, count at the start.
    """
    if task.privacy.noise != "device" or not rule_traits(task).compares_rows:
        return None
    return comparison_problem(
        task.aggregation.rule,
        noise_multiplier=task.privacy.noise_multiplier,
        dim=1,
        num_updates=task.reporting_goal,
    )


PRIVATE_TASKS: Final[tuple[Contradiction["TaskConfig"], ...]] = (
    Contradiction(
        "num-rounds",
        lambda task: task.num_rounds > MAX_RELEASES,
        f"{{0.num_rounds}} is more than the ledger of a private task counts, {MAX_RELEASES}",
    ),
    Contradiction(
        "privacy.noise",
        lambda task: (
            task.privacy.noise not in _NOISE_PLACES[task.mode]
            and " or ".join(_NOISE_PLACES[task.mode])
        ),
        "{0.privacy.noise} must be {1} where mode is {0.mode}",
    ),
    Contradiction(
        "plan.clipping-norm",
        lambda task: not task.is_shared and task.plan.clipping_norm <= 0,
        "must be above 0: it is the sensitivity of one device",
    ),
    Contradiction(
        "aggregation.clipping-norm",
        lambda task: not task.is_shared and task.aggregation.clipping_norm is not None,
        "would replace plan.clipping-norm, which the noise rests on",
    ),
    Contradiction(
        "sharing.group-size",
        lambda task: task.sharing.group_size > 0,
        "opens sums without the noise of the whole: set it to 0",
    ),
    Contradiction(
        "sharing.max-staleness",
        lambda task: task.sharing.max_staleness > 0,
        "counts one device's update in rounds it was not drawn for",
    ),
    Contradiction(
        "privacy.sampling-probability",
        lambda task: (
            task.privacy.sampling == "poisson" and not 0 < task.privacy.sampling_probability <= 1
        ),
        "must be above 0 and at most 1 with sampling poisson",
    ),
    Contradiction(
        "privacy.sampling-probability",
        lambda task: task.privacy.sampling != "poisson" and task.privacy.sampling_probability > 0,
        "has no meaning without sampling poisson",
    ),
    Contradiction(
        "privacy.population",
        lambda task: task.privacy.sampling != "none" and task.privacy.population < 1,
        "must be given with sampling {0.privacy.sampling}",
    ),
    Contradiction(
        "privacy.population",
        lambda task: (
            task.privacy.sampling == "fixed-size"
            and 1 <= task.privacy.population < task.reporting_goal
        ),
        "{0.privacy.population} must not be below reporting-goal={0.reporting_goal}",
    ),
    Contradiction(
        "privacy.sampling",
        lambda task: (
            task.privacy.sampling == "fixed-size"
            and (task.fairness != 0 or task.min_rounds_between > 0)
        ),
        "fixed-size draws every device alike: set fairness = 0 and min-rounds-between = 0",
    ),
    Contradiction(
        "max-participations",
        lambda task: task.privacy.sampling != "none" and task.max_participations is not None,
        "would make sampling {0.privacy.sampling} depend on earlier rounds",
    ),
    Contradiction(
        "min-rounds-between",
        lambda task: task.privacy.sampling == "poisson" and task.min_rounds_between > 0,
        "would make sampling poisson depend on earlier rounds",
    ),
    Contradiction(
        "seed",
        lambda task: task.privacy.sampling != "none" and task.seed is not None,
        "makes the cohort guessable: sampling amplifies nothing then",
    ),
    Contradiction(
        "privacy.sampling",
        lambda task: task.privacy.sampling != "none" and task.is_shared,
        "amplifies nothing in shared rounds: the coordinator, from whom updates are hidden there,"
        " knows the cohort",
    ),
    Contradiction(
        "privacy.sampling",
        lambda task: task.privacy.sampling != "none" and not rule_traits(task).is_linear,
        "{0.privacy.sampling} goes with aggregation.rule = mean only: to other rules a device that"
        " is not drawn is not the same as one that sends zeros",
    ),
    Contradiction(
        "privacy.delta",
        lambda task: task.privacy.population * task.privacy.delta >= 1,
        "{0.privacy.delta} must be below 1 / population",
    ),
    Contradiction(
        "privacy.sampling",
        lambda task: task.privacy.noise == "device" and task.privacy.sampling != "none",
        "amplifies nothing where devices add the noise: the coordinator sees who sent",
    ),
    Contradiction(
        "compression.method",
        lambda task: task.privacy.noise == "device" and task.compression.method == "top-k",
        "top-k chooses coordinates, which noise of devices does not hide",
    ),
    Contradiction("aggregation.rule", _noisy_rule_problem, "{1}"),
    Contradiction(
        "aggregation.rule",
        lambda task: (
            task.privacy.noise == "central"
            and task.aggregation.rule not in private_rules()
            and " or ".join(private_rules())
        ),
        "{0.aggregation.rule} must be {1} where the coordinator adds noise",
    ),
    Contradiction(
        "privacy.mechanism",
        lambda task: (
            task.privacy.mechanism == "banded"
            and (task.privacy.sampling != "none" or task.privacy.noise != "central")
        ),
        "banded is for noise = central without sampling",
    ),
    Contradiction(
        "max-participations",
        lambda task: task.privacy.mechanism == "banded" and task.max_participations is None,
        "must be given with mechanism banded",
    ),
    Contradiction(
        "min-rounds-between",
        lambda task: (
            task.privacy.mechanism == "banded" and task.min_rounds_between < task.privacy.bands - 1
        ),
        "{0.min_rounds_between} must be at least bands - 1 with mechanism banded,"
        " bands={0.privacy.bands}",
    ),
    Contradiction(
        "compression.method",
        lambda task: (
            task.privacy.mechanism == "banded"
            and task.compression.method in {"rand-k", "announced", "projection"}
        ),
        "{0.compression.method} has a map of its own in each round, so that mechanism banded"
        " cancels nothing",
    ),
    Contradiction(
        "privacy.bands",
        lambda task: task.privacy.mechanism != "banded" and task.privacy.bands != 1,
        "has no meaning without mechanism banded",
    ),
    Contradiction(
        "privacy.adaptive-clipping",
        lambda task: (
            task.privacy.adaptive_clipping
            and (task.privacy.noise != "central" or task.privacy.mechanism == "banded")
        ),
        "is for noise = central with mechanism gaussian",
    ),
    Contradiction(
        "privacy.adaptive-clipping",
        lambda task: task.privacy.adaptive_clipping and not rule_traits(task).is_linear,
        "is for aggregation.rule = mean",
    ),
)
