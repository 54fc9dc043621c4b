"""Settings that contradict each other: one table of condition and message.

A row is told where its condition holds. It is not asked where a setting that it reads is wrong
itself. To add one: the setting that people should look at, the condition, and what is wrong in
words that go on after the setting's name; `{0}` is what the condition was asked about.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from aggregators.errors import AggregationError
from aggregators.private_rules import private_rules
from aggregators.registry import rules_that, traits_of
from aggregators.server_optimizer import ServerOptimizerConfig
from aggregators.traits import MIN_RANKABLE_DENSITY, Traits
from privacy.budget import MAX_RELEASES
from privacy.clipping import MIN_CLIP_NORM
from privacy.noisy_distances import comparison_problem
from server.config.compression_config import value_type_of
from server.config.formats import split_address
from server.config.privacy_config import PrivacyConfig
from server.config.section import UnreadableSetting
from server.config.sharing_config import SharingConfig
from server.storage.ports import Durability

if TYPE_CHECKING:
    from server.config.holder_config import HolderConfig
    from server.config.server_config import ServerConfig
    from server.config.task_config import TaskConfig

T = TypeVar("T")

_OPTIMIZER: Final = ServerOptimizerConfig()
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_ANY_HOST: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104  # compared, not listened on


@dataclass(frozen=True, slots=True)
class Contradiction(Generic[T]):
    """One row.

    Attributes:
        setting: that is told, as the file writes it within what is asked.
        when: the condition.
        message: `{0}` stands for what was asked, `{1}` for what the condition returned.
    """

    setting: str
    when: Callable[[T], object]
    message: str


def problems_of(rows: Iterable[Contradiction[T]], asked: T, where: str = "") -> list[str]:
    """Tell every row whose condition holds, each in one line.

    Args:
        rows: of the table.
        asked: the settings.
        where: their name, with a dot after it.
    """
    told = []
    for row in rows:
        try:
            found = row.when(asked)
            if found:
                told.append(f"{where}{row.setting}: {row.message.format(asked, found)}")
        except UnreadableSetting:
            continue
    return told


@dataclass(frozen=True, slots=True)
class PlacedTask:
    """A task among the others of its coordinator.

    Attributes:
        server: all settings.
        index: of the task, from 0.
    """

    server: "ServerConfig"
    index: int

    @property
    def task(self) -> "TaskConfig":
        return self.server.tasks[self.index]

    @property
    def namesake(self) -> int:
        """Number of an earlier task with the same name, from 1; 0: there is none."""
        for number, other in enumerate(self.server.tasks[: self.index], start=1):
            if getattr(other, "name", None) == self.task.name:
                return number
        return 0


def server_problems(config: "ServerConfig") -> list[str]:
    """Tell every contradiction in a coordinator's settings."""
    told = problems_of(SERVER, config)
    try:
        tasks = config.tasks
    except UnreadableSetting:
        return told
    for index, task in enumerate(tasks):
        where = f"task[{index + 1}]."
        told += problems_of(TASK, task, where)
        told += problems_of(PLACED_TASK, PlacedTask(config, index), where)
    return told


def holder_problems(config: "HolderConfig") -> list[str]:
    """Tell every contradiction in a share holder's settings."""
    return problems_of(HOLDER, config)


def _rows(guard: Callable[[T], bool], *rows: Contradiction[T]) -> tuple[Contradiction[T], ...]:
    """Rows that count only where `guard` holds."""

    def guarded(when: Callable[[T], object]) -> Callable[[T], object]:
        return lambda asked: guard(asked) and when(asked)

    return tuple(Contradiction(row.setting, guarded(row.when), row.message) for row in rows)


def _hosts_meet(one: str, other: str) -> bool:
    """Whether two addresses cannot both be listened on."""
    if not one or not other:
        return False
    (host, port), (other_host, other_port) = split_address(one), split_address(other)
    hosts = {host, other_host}
    is_met = len(hosts) == 1 or hosts <= _LOOPBACK or bool(hosts & _ANY_HOST)
    return port == other_port != 0 and is_met


def _shared_port(name: str, other: str) -> Contradiction[Any]:
    return Contradiction(
        f"listen.{name.replace('_', '-')}",
        lambda config: _hosts_meet(getattr(config.listen, name), getattr(config.listen, other)),
        f"{{0.listen.{name}}} is where listen.{other.replace('_', '-')} answers: each needs a port"
        " of its own",
    )


# In shared rounds norms are checked on shares, and noise of devices would fail the checks.
_NOISE_PLACES: Final = {"plain": ("central", "device"), "shared": ("holders",)}


def _traits(task: "TaskConfig") -> Traits:
    """What the rule declares. Where there is no such rule, nothing that rests on it is judged."""
    try:
        return traits_of(task.aggregation.rule)
    except AggregationError as error:
        raise UnreadableSetting(task.aggregation.rule) from error


def _picking_rules() -> str:
    return " and ".join(rules_that(lambda traits: traits.picks_by_distances))


def _noisy_rule_problem(task: "TaskConfig") -> str | None:
    """Why the rule cannot work under the noise of devices, whatever the model.

    A multiplier that is still to be calibrated, and the size of the model, count at the start.
    """
    if task.privacy.noise != "device" or not _traits(task).compares_rows:
        return None
    return comparison_problem(
        task.aggregation.rule,
        noise_multiplier=task.privacy.noise_multiplier,
        dim=1,
        num_updates=task.reporting_goal,
    )


SERVER: Final[tuple[Contradiction["ServerConfig"], ...]] = (
    Contradiction(
        "tls",
        lambda config: not config.tls.insecure and not config.tls.is_complete,
        "give certificate, private-key and client-ca, or set insecure = true",
    ),
    Contradiction(
        "tls",
        lambda config: config.tls.insecure and config.tls.is_begun and not config.tls.is_complete,
        "certificate, private-key and client-ca go together: give all three or none",
    ),
    Contradiction(
        "tls.insecure",
        lambda config: config.tls.insecure and config.tls.is_complete,
        "is true, and certificate, private-key and client-ca are given: choose one",
    ),
    Contradiction(
        "tls.gateways",
        lambda config: config.tls.gateways and not config.tls.is_complete,
        "are told by their certificates: they have no meaning without TLS",
    ),
    Contradiction(
        "enrollment",
        lambda config: config.enrollment.is_begun and not config.enrollment.is_complete,
        "ca-certificate, ca-private-key and token-key go together: give all three or none",
    ),
    Contradiction(
        "listen.enrollment",
        lambda config: (
            config.enrollment.is_complete
            and config.tls.is_complete
            and not config.listen.enrollment
        ),
        "must be given: enrollment under TLS needs an address of its own",
    ),
    Contradiction(
        "admin.token",
        lambda config: (
            config.admin.token is None and split_address(config.listen.http)[0] not in _LOOPBACK
        ),
        "must be given where listen.http={0.listen.http} is reachable by others",
    ),
    *(
        _shared_port(name, other)
        for other, name in combinations(("grpc", "enrollment", "http", "metrics"), 2)
    ),
    Contradiction("task", lambda config: not config.tasks, "at least one [[task]] must be given"),
)

PLACED_TASK: Final[tuple[Contradiction[PlacedTask], ...]] = (
    Contradiction(
        "name",
        lambda placed: placed.namesake,
        "task names must differ, {0.task.name} is that of task[{1}] too",
    ),
    Contradiction(
        "privacy.mechanism",
        lambda placed: (
            placed.task.privacy.mechanism == "banded"
            and placed.server.store.durability is not Durability.MACHINE
        ),
        "banded needs store.durability = machine: a store that forgets a round would give its"
        " noise to two sums",
    ),
)

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

_SHARED_TASKS: Final[tuple[Contradiction["TaskConfig"], ...]] = (
    Contradiction(
        "sharing.committee",
        lambda task: task.sharing.committee is None,
        "must name the committee's file",
    ),
    Contradiction(
        "plan.clipping-norm",
        lambda task: task.plan.clipping_norm <= 0,
        "must be above 0: it bounds what one device can do to the sum",
    ),
    Contradiction(
        "aggregation.clipping-norm",
        lambda task: task.aggregation.clipping_norm is not None,
        "cannot apply to updates nobody sees: set plan.clipping-norm",
    ),
    Contradiction(
        "aggregation.rule",
        lambda task: (
            task.sharing.group_size == 0
            and not _traits(task).works_on_shares
            and not _traits(task).is_single
        ),
        "{0.aggregation.rule} needs single updates or groups: set sharing.group-size",
    ),
    Contradiction(
        "aggregation.rule",
        lambda task: _traits(task).is_single,
        "{0.aggregation.rule} would open a single update",
    ),
    Contradiction(
        "sharing.checks",
        lambda task: (
            _traits(task).picks_by_distances
            and task.sharing.group_size == 0
            and task.sharing.checks != "distances"
        ),
        "must be distances for aggregation.rule={0.aggregation.rule}, which picks by distances",
    ),
    Contradiction(
        "sharing.checks",
        lambda task: (
            task.sharing.checks == "distances"
            and (not _traits(task).picks_by_distances or task.sharing.group_size > 0)
            and _picking_rules()
        ),
        "distances is for {1} without groups",
    ),
    Contradiction(
        "sharing.sketch-dim",
        lambda task: task.sharing.sketch_dim & (task.sharing.sketch_dim - 1) != 0,
        "{0.sharing.sketch_dim} must be a power of two",
    ),
    Contradiction(
        "sharing.min-members",
        lambda task: task.min_members > task.quorum,
        "{0.min_members} must not exceed min-contributions={0.quorum}, and is at least 2",
    ),
    Contradiction(
        "sharing.holders-private-key",
        lambda task: (
            (task.sharing.holders_certificate is None)
            is not (task.sharing.holders_private_key is None)
        ),
        "goes together with sharing.holders-certificate: give both or none",
    ),
    Contradiction(
        "sharing.holders-ca",
        lambda task: (
            task.sharing.holders_certificate is not None and task.sharing.holders_ca is None
        ),
        "must be given with sharing.holders-certificate",
    ),
    Contradiction(
        "sharing.max-wait-s",
        lambda task: task.sharing.max_wait_s < task.sharing.holder_timeout_s,
        "{0.sharing.max_wait_s:g} must not be below"
        " sharing.holder-timeout-s={0.sharing.holder_timeout_s:g}",
    ),
)

_PRIVATE_TASKS: Final[tuple[Contradiction["TaskConfig"], ...]] = (
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
        lambda task: task.privacy.sampling != "none" and not _traits(task).is_linear,
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
        lambda task: task.privacy.adaptive_clipping and not _traits(task).is_linear,
        "is for aggregation.rule = mean",
    ),
)


TASK: Final = (
    *_ALL_TASKS,
    *_AGGREGATION,
    *_rows(lambda task: task.is_shared, *_SHARED_TASKS),
    *_rows(lambda task: task.privacy.is_on, *_PRIVATE_TASKS),
)

HOLDER: Final[tuple[Contradiction["HolderConfig"], ...]] = (
    Contradiction(
        "tls",
        lambda config: not config.tls.insecure and not config.tls.has_certificate,
        "give certificate and private-key, or set insecure = true",
    ),
    Contradiction(
        "tls.private-key",
        lambda config: (config.tls.certificate is None) is not (config.tls.private_key is None),
        "goes together with certificate: give both or none",
    ),
    Contradiction(
        "tls.insecure",
        lambda config: config.tls.insecure and config.tls.has_certificate,
        "is true, and certificate and private-key are given: choose one",
    ),
    Contradiction(
        "tls.client-ca",
        lambda config: config.tls.client_ca is not None and not config.tls.has_certificate,
        "needs certificate and private-key",
    ),
    Contradiction(
        "tls.coordinators",
        lambda config: (config.tls.client_ca is None) is not (not config.tls.coordinators),
        "client-ca and coordinators go together: give both or none",
    ),
    Contradiction(
        "policy.checks", lambda config: not config.policy.checks, "must name at least one"
    ),
    Contradiction(
        "policy.degraded", lambda config: not config.policy.degraded, "must name at least one"
    ),
    Contradiction(
        "policy.max-members",
        lambda config: config.policy.max_members < config.policy.min_members,
        "{0.policy.max_members} must not be below min-members={0.policy.min_members}",
    ),
    Contradiction(
        "policy.max-wrap-tests",
        lambda config: config.policy.max_wrap_tests < config.policy.min_wrap_tests,
        "{0.policy.max_wrap_tests} must not be below min-wrap-tests={0.policy.min_wrap_tests}",
    ),
    *(_shared_port(name, other) for other, name in combinations(("grpc", "http", "metrics"), 2)),
)
