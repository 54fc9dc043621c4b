"""Contradictions in the settings of a coordinator or a share holder as a whole."""

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final

from server.config.contradictions import Contradiction, problems_of
from server.config.durability import Durability
from server.config.formats import split_address
from server.config.section import UnreadableSetting
from server.config.task_contradictions import TASK

if TYPE_CHECKING:
    from server.config.holder_config import HolderConfig
    from server.config.server_config import ServerConfig
    from server.config.task_config import TaskConfig

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_ANY_HOST: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104  # compared, not listened on


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
        """The settings of the task itself."""
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


def _hosts_meet(one: str, other: str) -> bool:
    """Tell whether two addresses cannot both be listened on."""
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
