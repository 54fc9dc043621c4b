"""Contradictions in the settings of a task."""

from typing import TYPE_CHECKING, Final

from aggregators.registry import rules_that
from aggregators.server_optimizer import ServerOptimizerConfig
from aggregators.traits import MIN_RANKABLE_DENSITY
from privacy.clipping import MIN_CLIP_NORM
from server.config.contradictions import Contradiction, rows_where
from server.config.privacy_config import PrivacyConfig
from server.config.private_contradictions import PRIVATE_TASKS
from server.config.shared_contradictions import SHARED_TASKS
from server.config.sharing_config import SharingConfig
from server.config.task_config import value_type_of

if TYPE_CHECKING:
    from server.config.task_config import TaskConfig

_OPTIMIZER: Final = ServerOptimizerConfig()

_ALL_TASKS: Final[tuple[Contradiction["TaskConfig"], ...]] = (
    Contradiction(
        "plan.clipping-norm",
        lambda task: 0 < task.plan.clipping_norm < MIN_CLIP_NORM,
        f"{{0.plan.clipping_norm:g}} must be at least {MIN_CLIP_NORM:g}, or 0 for none",
    ),
    Contradiction(
        "min-contributions",
        lambda task: task.min_contributions > task.reporting_goal,
        "{0.min_contributions} must not exceed reporting-goal={0.reporting_goal}",
    ),
    Contradiction(
        "sharing",
        lambda task: not task.is_shared and task.sharing != SharingConfig(),
        'has no meaning where mode = "plain"',
    ),
    Contradiction(
        "privacy.noise",
        lambda task: not task.privacy.is_on and task.privacy != PrivacyConfig(),
        "is none, so that the other settings of privacy would do nothing: say who adds noise",
    ),
    Contradiction(
        "compression.method",
        lambda task: task.is_shared and task.compression.method == "top-k",
        "top-k cannot be shared: each device's choice of coordinates would be seen, and sums of"
        " different coordinates mean nothing; use projection",
    ),
    Contradiction(
        "compression.value-type",
        lambda task: task.is_shared and value_type_of(task) != "float32",
        "has no meaning in shared rounds: shares are field elements",
    ),
    Contradiction(
        "compression.method",
        lambda task: (
            task.is_shared and task.sharing.max_staleness > 0 and not task.compression.is_dense
        ),
        "{0.compression.method} does not go with sharing.max-staleness: each round has a map of its"
        " own",
    ),
)

_AGGREGATION: Final[tuple[Contradiction["TaskConfig"], ...]] = (
    Contradiction(
        "keep-contributions",
        lambda task: task.keep_contributions > 0 and (task.is_shared or task.privacy.is_on),
        "keeps what single devices sent, which is for plain tasks without privacy",
    ),
    Contradiction(
        "aggregation.malicious-fraction",
        lambda task: (
            task.aggregation.malicious_fraction is not None
            and task.aggregation.num_malicious_nodes > 0
        ),
        "and num-malicious-nodes both say what f is: give one",
    ),
    Contradiction(
        "aggregation.malicious-fraction",
        lambda task: (
            task.aggregation.malicious_fraction is not None
            and (task.is_shared or task.privacy.is_on)
        ),
        "is for plain tasks without privacy: set num-malicious-nodes",
    ),
    Contradiction(
        "aggregation.may-degrade",
        lambda task: (
            task.aggregation.may_degrade and (task.is_shared or task.privacy.noise == "central")
        ),
        "has no meaning where the coordinator does not pick among updates that it sees",
    ),
    Contradiction(
        "aggregation.may-degrade",
        lambda task: (
            task.aggregation.may_degrade
            and task.compression.method == "top-k"
            and task.compression.ratio < MIN_RANKABLE_DENSITY
            and " or ".join(rules_that(lambda traits: traits.stands_in and traits.ranks_values))
        ),
        "could take {1}, which rank the values of each coordinate: the zeros of devices that did"
        " not choose it would outvote the others",
    ),
    Contradiction(
        "aggregation.server-momentum",
        lambda task: (
            task.aggregation.server_momentum is not None
            and task.aggregation.server_optimizer == "fedavg"
        ),
        "has no meaning with server-optimizer = fedavg",
    ),
    Contradiction(
        "aggregation.server-beta2",
        lambda task: (
            task.aggregation.server_beta2 != _OPTIMIZER.beta2
            and task.aggregation.server_optimizer not in {"fedadam", "fedyogi"}
        ),
        "has no meaning with server-optimizer = {0.aggregation.server_optimizer}",
    ),
    Contradiction(
        "aggregation.server-adaptivity",
        lambda task: (
            task.aggregation.server_adaptivity != _OPTIMIZER.adaptivity
            and task.aggregation.server_optimizer not in {"fedadagrad", "fedadam", "fedyogi"}
        ),
        "has no meaning with server-optimizer = {0.aggregation.server_optimizer}",
    ),
)

TASK: Final = (
    *_ALL_TASKS,
    *_AGGREGATION,
    *rows_where(lambda task: task.is_shared, *SHARED_TASKS),
    *rows_where(lambda task: task.privacy.is_on, *PRIVATE_TASKS),
)
