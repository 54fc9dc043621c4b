"""What a coordinator knows of its tasks for as long as it runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from compression.codec import dense_payload_bytes
from protos.fedagg.v1 import federation_pb2 as pb
from server.config import CriteriaConfig, TaskConfig
from server.convert import plan_of
from server.errors import UnknownTask
from server.round.selection import EligibilityCriteria, SelectionPolicy, cohort_size
from server.sharing.planning import SharedTask

_ANY: Final = 1 << 40  # as many eligible devices as one can wish


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """The unchanging facts that every call needs."""

    config: TaskConfig
    dim: int
    max_update_bytes: int
    plan: pb.Plan
    criteria: EligibilityCriteria
    selection: SelectionPolicy
    shared: SharedTask | None = None  # None: the task's rounds are plain

    @property
    def cohort_wanted(self) -> int:
        """Devices selected for a round where there are enough."""
        return cohort_size(self.selection, _ANY)

    @property
    def name(self) -> str:
        return self.config.name


class TaskDirectory:
    """The tasks this coordinator serves, by name."""

    def __init__(self, tasks: Iterable[TaskInfo]) -> None:
        self._tasks = {task.name: task for task in tasks}

    def __getitem__(self, name: str) -> TaskInfo:
        """Look a task up.

        Raises:
            UnknownTask: if this coordinator serves no such task.
        """
        try:
            return self._tasks[name]
        except KeyError:
            msg = f"no task named {name[:64]!r}"
            raise UnknownTask(msg) from None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tasks)


def task_info(config: TaskConfig, *, dim: int, shared: SharedTask | None = None) -> TaskInfo:
    """Facts of one task whose model has `dim` elements.

    Raises:
        SharingError: if the settings of a shared task fit no sound round.
    """
    return TaskInfo(
        config=config,
        dim=dim,
        max_update_bytes=shared.check(dim=dim) if shared else dense_payload_bytes(dim),
        plan=plan_of(config.plan),
        criteria=_criteria(config.criteria),
        selection=SelectionPolicy(
            reporting_goal=config.reporting_goal,
            over_selection=config.over_selection,
            max_participations=config.max_participations,
            min_rounds_between=config.min_rounds_between,
            fairness=config.fairness,
        ),
        shared=shared,
    )


def _criteria(config: CriteriaConfig) -> EligibilityCriteria:
    return EligibilityCriteria(
        min_battery_percent=config.min_battery_percent,
        require_charging=config.require_charging,
        require_unmetered=config.require_unmetered,
        require_idle=config.require_idle,
        min_ram_mib=config.min_ram_mib,
        min_app_version=config.min_app_version,
    )
