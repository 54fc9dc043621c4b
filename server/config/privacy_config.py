"""Settings of differential privacy, and what makes no sense among them."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from privacy.noisy_distances import rule_problem
from server.config.section import Section

if TYPE_CHECKING:
    from server.config.task_config import TaskConfig


class PrivacyConfig(Section):
    """How much the published models may tell about one device."""

    noise: Literal["none", "central", "holders", "device"] = Field(
        default="none",
        description="who adds it: the coordinator, the share holders, or every device",
    )
    epsilon: float = Field(
        default=1.0, gt=0, le=1000, allow_inf_nan=False, description="the budget, at `delta`"
    )
    delta: float = Field(default=1e-5, gt=0, lt=1, allow_inf_nan=False)
    noise_multiplier: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="z; 0: the least with which num-rounds fit the budget",
    )
    mechanism: Literal["gaussian", "banded"] = Field(
        default="gaussian", description="banded: correlated noise, for runs without sampling"
    )
    bands: int = Field(default=1, ge=1, le=1024, description="of mechanism banded")
    sampling: Literal["poisson", "fixed-size", "none"] = Field(
        default="none", description="what amplification is claimed; docs/Privacy.md says when"
    )
    sampling_probability: float = Field(
        default=0.0, ge=0, le=1, description="q of poisson: each device's chance in each round"
    )
    population: int = Field(
        default=0, ge=0, description="devices of the task; with poisson and fixed-size"
    )
    accountant: Literal["pld", "rdp"] = Field(
        default="pld", description="what enforces the budget; both are reported"
    )
    adaptive_clipping: bool = Field(
        default=False, description="move the clipping norm to target-quantile of the updates"
    )
    target_quantile: float = Field(default=0.9, gt=0, lt=1)
    clipping_learning_rate: float = Field(default=0.2, gt=0, le=10)
    count_noise: float = Field(
        default=0.0, ge=0, description="of the count it rests on; 0: a twentieth of the cohort"
    )

    @property
    def is_on(self) -> bool:
        return self.noise != "none"


def privacy_problem(task: "TaskConfig") -> str | None:
    """Why the task cannot be private so, as far as its own settings tell."""
    privacy, rule = task.privacy, task.aggregation.rule
    sampling = privacy.sampling
    unusable = _rule_problem(task) if privacy.noise == "device" else None
    # Norms are checked on shares in shared rounds, and noise of devices would fail the checks.
    places = {"plain": {"central", "device"}, "shared": {"holders"}}[task.mode]
    problems = (
        (
            privacy.noise not in places,
            (
                f"privacy.noise={privacy.noise!r} must be {' or '.join(sorted(places))} where"
                f" mode is {task.mode!r}"
            ),
        ),
        (
            task.plan.clipping_norm <= 0,
            "plan.clipping-norm must be > 0: it is the sensitivity of one device",
        ),
        (
            task.aggregation.clipping_norm is not None,
            "aggregation.clipping-norm would replace plan.clipping-norm, which the noise rests on",
        ),
        (
            task.sharing.group_size > 0,
            "sharing.group-size opens sums without the noise of the whole: set it to 0",
        ),
        (
            task.sharing.max_staleness > 0,
            "sharing.max-staleness counts one device's update in rounds it was not drawn for",
        ),
        (
            sampling == "poisson" and not 0 < privacy.sampling_probability <= 1,
            "privacy.sampling-probability must be in (0, 1] with sampling poisson",
        ),
        (
            sampling != "poisson" and privacy.sampling_probability > 0,
            "privacy.sampling-probability has no meaning without sampling poisson",
        ),
        (
            sampling != "none" and privacy.population < 1,
            f"privacy.population must be given with sampling {sampling}",
        ),
        (
            sampling == "fixed-size" and privacy.population < task.reporting_goal,
            "privacy.population must not be below reporting-goal",
        ),
        (
            sampling == "fixed-size" and (task.fairness != 0 or task.min_rounds_between > 0),
            (
                "sampling fixed-size draws every device alike: set fairness = 0 and"
                " min-rounds-between = 0"
            ),
        ),
        (
            sampling != "none" and task.max_participations is not None,
            f"max-participations would make sampling {sampling} depend on earlier rounds",
        ),
        (
            sampling == "poisson" and task.min_rounds_between > 0,
            "min-rounds-between would make sampling poisson depend on earlier rounds",
        ),
        (
            sampling != "none" and task.seed is not None,
            "seed makes the cohort guessable: sampling amplifies nothing then",
        ),
        (
            sampling != "none" and task.is_shared,
            (
                "sampling amplifies nothing in shared rounds: the coordinator, from whom updates"
                " are hidden there, knows the cohort"
            ),
        ),
        (
            sampling != "none" and rule != "mean",
            (
                f"sampling {sampling} goes with rule = 'mean' only: to other rules a device that"
                " is not drawn is not the same as one that sends zeros"
            ),
        ),
        (
            privacy.population * privacy.delta >= 1,
            f"privacy.delta={privacy.delta} must be below 1 / population",
        ),
        (
            privacy.noise == "device" and sampling != "none",
            "sampling amplifies nothing where devices add the noise: the coordinator sees who sent",
        ),
        (
            privacy.noise == "device" and task.compression.method == "top-k",
            "noise of devices does not hide which coordinates compression.method='top-k' chooses",
        ),
        (
            unusable is not None,
            unusable or "",
        ),
        (
            privacy.mechanism == "banded" and (sampling != "none" or privacy.noise != "central"),
            "mechanism banded is for noise = 'central' without sampling",
        ),
        (
            privacy.mechanism == "banded" and task.max_participations is None,
            "mechanism banded needs max-participations",
        ),
        (
            privacy.mechanism == "banded" and task.min_rounds_between < privacy.bands - 1,
            "mechanism banded needs min-rounds-between of at least bands - 1",
        ),
        (
            privacy.mechanism == "banded"
            and task.compression.method in {"rand-k", "announced", "projection"},
            (
                f"mechanism banded cancels nothing with compression.method="
                f"{task.compression.method!r}: each round has a map of its own"
            ),
        ),
        (
            privacy.mechanism != "banded" and privacy.bands != 1,
            "privacy.bands has no meaning without mechanism banded",
        ),
        (
            privacy.adaptive_clipping
            and (privacy.noise != "central" or privacy.mechanism == "banded"),
            "adaptive-clipping is for noise = 'central' with mechanism gaussian",
        ),
        (
            privacy.adaptive_clipping and rule != "mean",
            "adaptive-clipping is for rule = 'mean'",
        ),
    )
    return next((why for failed, why in problems if failed), None)


def _rule_problem(task: "TaskConfig") -> str | None:
    """Why the rule cannot work under the noise of devices, whatever the model.

    A multiplier that is still to be calibrated, and the size of the model, count at the start.
    """
    return rule_problem(
        task.aggregation.rule,
        noise_multiplier=task.privacy.noise_multiplier,
        dim=1,
        num_updates=task.reporting_goal,
    )
